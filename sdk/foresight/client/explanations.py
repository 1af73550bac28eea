"""Explanations of predictions: what each input of the model adds to a row's score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foresight.predictor.v1 import prediction_pb2
from foresight.types.v1 import types_pb2
from foresight.wire import decode_column

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why n rows have their scores: base + the sum of contributions = score in each row.

    `output` names what is explained: `value` of a regressor, else `probability` (of the positive class, or of the class
    that is the row's label when there are more than two). `base` is the mean score over the model's example rows;
    `contributions` has n numbers for each input of the model. They say what the model does with its inputs, not
    what causes what; from nine inputs on they are sampled.
    """

    output: str
    base: list[float]
    score: list[float]
    contributions: dict[str, list[float]]

    def __len__(self) -> int:
        return len(self.score)

    def to_frame(self) -> pandas.DataFrame:
        """The contributions, one row per prediction and one column per input."""
        import pandas

        return pandas.DataFrame(self.contributions, index=range(len(self)))

    def of(self, row: int) -> dict[str, float]:
        """The contributions to one prediction, the largest first, whichever sign it has."""
        added = {name: values[row] for name, values in self.contributions.items()}
        return dict(sorted(added.items(), key=lambda item: -abs(item[1])))


def decode_explanation(message: prediction_pb2.Explanation) -> Explanation:
    """The explanation of an answer."""
    return Explanation(
        output=message.output,
        base=_floats(message.base),
        score=_floats(message.score),
        contributions={column.name: _floats(column) for column in message.contributions},
    )


def _floats(column: types_pb2.Column) -> list[Any]:
    return decode_column(column, "explanation").to_list()
