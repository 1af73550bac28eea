"""Answers as bytes, for as long as they are remembered: those of a PredictResponse."""

from __future__ import annotations

from foresight.predictor.v1 import prediction_pb2
from foresight.types.v1 import types_pb2
from foresight.values import FeatureStatus, MissingPolicy
from foresight.wire import decode_column, decode_instant
from services.predictor.explaining import Explanation
from services.predictor.policies import Missing
from services.predictor.prediction_codec import encode_answer
from services.predictor.requests import Answer, AnsweredRows
from services.predictor.versions import VersionRef


class AnswerCodec:
    """Packs answers."""

    def pack(self, answer: Answer) -> bytes:
        """The bytes of an answer."""
        return encode_answer(answer).SerializeToString()

    def unpack(self, data: bytes) -> Answer:
        """The answer of `pack`'s bytes."""
        message = prediction_pb2.PredictResponse.FromString(data)
        return Answer(
            prediction_ids=tuple(message.prediction_ids),
            outputs=tuple(decode_column(c, "outputs") for c in message.outputs),
            model=_decode_ref(message.model),
            event_time=decode_instant(message.event_time),
            missing=[_decode_missing(m) for m in message.missing],
            repeated=message.repeated_answer,
            arms=tuple(AnsweredRows(a.arm, _decode_ref(a.model), tuple(a.rows)) for a in message.arms),
            explanation=_decode_explanation(message.explanation) if message.HasField("explanation") else None,
        )


def _decode_explanation(message: prediction_pb2.Explanation) -> Explanation:
    added = tuple(decode_column(c, "contributions") for c in message.contributions)
    return Explanation(message.output, decode_column(message.base), decode_column(message.score), added)


def _decode_missing(message: prediction_pb2.MissingFeature) -> Missing:
    at = decode_instant(message.last_known_at, "last_known_at") if message.HasField("last_known_at") else None
    return Missing(message.row, message.feature, FeatureStatus(message.status), MissingPolicy(message.policy), at)


def _decode_ref(message: types_pb2.VersionRef) -> VersionRef:
    return VersionRef(message.name, message.version)
