"""Predictions: ask, prove, and read the log of what was asked and answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from foresight.client.connection import PREDICT_S, READ_S, Calls, Connection, Headers
from foresight.client.datasets import decode_ref
from foresight.client.errors import NotFound
from foresight.client.explanations import Explanation, decode_explanation
from foresight.client.features import VersionRef, describe_view, encode_optional, read_rows
from foresight.client.frames import Output, Progress, from_table
from foresight.client.rows import encode_rows
from foresight.feature_store.v1 import offline_pb2, query_pb2
from foresight.logger.v1 import prediction_log_pb2, prediction_log_pb2_grpc
from foresight.predictor.v1 import prediction_pb2, prediction_pb2_grpc
from foresight.tables import arrow_type
from foresight.types.v1 import types_pb2
from foresight.values import FeatureStatus, MissingPolicy, check_name, instant_from_micros
from foresight.wire import decode_column, decode_instant

_CAUSES = {1: "data", 2: "expiry", 3: "transform", 4: "model", 5: "type", 6: "forgotten"}
# The gateway sends calls with the same value to the same replica, as long as that is there.
REQUEST_ID_HEADER = "x-foresight-request-id"
_POLICIES = {int(policy): policy.name.lower() for policy in MissingPolicy}
# Forces an arm, for operators.
ARM_HEADER = "x-foresight-arm"
# Columns of every group that say nothing about a prediction.
_BOOKKEEPING = ("known_at", "commit", "deleted")


@dataclass(frozen=True, slots=True)
class MissingFeature:
    """A feature without a value, of one row of a request, and why.

    `policy` is what was done about it: null, default or last_known; then `last_known_at` is the event time of the row
    whose value was used.
    """

    row: int
    feature: str
    status: FeatureStatus
    policy: str = ""
    last_known_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ArmAnswer:
    """The rows of a request that one arm of the deployment answered, with its model version."""

    arm: str
    model: VersionRef
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers for n rows: `outputs` has a list of n values per output, `pandas.DataFrame(answer.outputs)` a table.

    `arms` says which arm answered which rows, when the deployment has several; `model` is then that of row 0.
    `repeated`: they had been given before, to an earlier call with the same request id. `explanation` is there when it
    was asked for, unless the model has no score for a mix of a row and its example rows.
    """

    ids: list[str]
    outputs: dict[str, list[Any]]
    model: VersionRef
    event_time: datetime
    missing: list[MissingFeature]
    repeated: bool = False
    explanation: Explanation | None = None
    arms: tuple[ArmAnswer, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def degraded(self) -> bool:
        """Whether any row was answered without the feature store, as that did not answer."""
        return any(m.status is FeatureStatus.UNAVAILABLE for m in self.missing)


@dataclass(frozen=True, slots=True)
class FeatureUse:
    """What the model got for one feature; `policy` is what was done about a missing value ('' when none was).

    Under last_known the value is that of the row with the event time `last_known_at` in the commit `last_known_commit`.
    """

    value: Any
    status: FeatureStatus
    policy: str
    last_known_at: datetime | None = None
    last_known_commit: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What turned out to be true, and since when that was known."""

    value: Any
    observed_at: datetime
    revision: int


@dataclass(frozen=True, slots=True)
class LoggedPrediction:
    """One prediction as it was logged, with its outcome so far.

    `arm` is the one that answered, '' where the deployment has one only; `arm_probability` that with which entities get
    it (1.0 where there is one only; 0.0 for a shadow), which says nothing where `arm_forced`. What a `shadow` predicted
    no caller has seen.
    """

    prediction_id: str
    deployment: str
    model: VersionRef
    model_sha256: str
    view: VersionRef
    event_time: datetime
    served_at: datetime
    latency_us: int
    replica: str
    incarnation: str
    sequence: int
    request_id: str
    caller: str
    applied_commit: int
    entity_keys: Mapping[str, Any]
    request_features: Mapping[str, Any]
    features: Mapping[str, FeatureUse]
    outputs: Mapping[str, Any]
    outcome: Outcome | None
    arm: str = ""
    arm_probability: float = 1.0
    arm_forced: bool = False
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One difference between a logged prediction and its replay; `cause`: data, expiry, transform, model,
    type or forgotten."""

    name: str
    cause: str
    recorded: str
    replayed: str


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether a replay of a prediction gave the same features and outputs, byte by byte."""

    verified: bool
    mismatches: tuple[Mismatch, ...]
    model: VersionRef


class PredictionCalls(Calls):
    """Calls about predictions."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._predictor = prediction_pb2_grpc.PredictionServiceStub(connection.channel)
        self._log = prediction_log_pb2_grpc.PredictionLogServiceStub(connection.channel)

    def predict(
        self,
        deployment: str,
        rows: Any,
        *,
        event_time: datetime | None = None,
        request_id: str = "",
        explain: bool = False,
        arm: str = "",
        timeout_s: float = PREDICT_S,
    ) -> Predictions:
        """Predicts for 1 to 1,024 rows: a DataFrame, a list of dicts, a dict of lists, or a dict for a single row.

        Rows have the view's entity keys and request features; types follow from the values, see `rows`. Features are
        read as of `event_time` (default: now).

        When an answer is lost it is asked again. Without a `request_id` that is a new prediction with its own id, and
        the unanswered one stays in the log. With one (at most 128 bytes, yours to choose, `uuid.uuid4().hex` will do)
        the repeat gets the first answer, also when you call again with the same rows within 10 minutes.

        With `explain` the answer says what each input of the model adds to a row's score, for at most 16 rows. Raises
        FailedPrecondition for a model that was trained before models carried example rows.

        Operators may force an `arm`, as testers do; PermissionDenied for others, NotFound for an arm that is not there.

        `timeout_s` is for one attempt; what finds nobody is tried again for as long as the client's `retry_s` says.
        """
        request = encode_request(deployment, rows, event_time, request_id, explain=explain)
        headers = request_headers(request_id)
        if arm:
            headers = (*headers, (ARM_HEADER, check_name(arm, "arm")))
        return decode_predictions(self._connection.call(self._predictor.Predict, request, timeout_s, headers=headers))

    def verify(self, prediction_id: str, *, timeout_s: float = READ_S) -> Verification:
        """Replays a logged prediction (features of then, transforms, model) and compares byte by byte."""
        request = prediction_pb2.VerifyPredictionRequest(prediction_id=prediction_id)
        answer = self._connection.call(self._predictor.VerifyPrediction, request, timeout_s)
        mismatches = tuple(
            Mismatch(m.name, _CAUSES.get(m.cause, "unknown"), m.recorded, m.replayed) for m in answer.mismatches
        )
        return Verification(answer.verified, mismatches, decode_ref(answer.model))

    def prediction(self, prediction_id: str) -> LoggedPrediction:
        """One prediction from the log. Raises NotFound when it has not arrived there."""
        request = prediction_log_pb2.GetPredictionRequest(prediction_id=prediction_id)
        return _decode_logged(self._connection.call(self._log.GetPrediction, request))

    def predictions(
        self,
        deployment: str | None = None,
        *,
        view: str,
        version: int = 0,
        from_event_time: datetime | None = None,
        to_event_time: datetime | None = None,
        output: Output = "pandas",
        progress: Progress | None = None,
        timeout_s: float = READ_S,
    ) -> Any:
        """The reingested predictions of a view with `from_event_time <= event_time < to_event_time`, as a DataFrame.

        One row per prediction: ids, entity keys, features as the model got them, outputs, and the outcome so far as
        the view's label with `observed_at` (both NULL without one). Raises NotFound before the first is reingested.
        """
        described = describe_view(self._connection, view, version)
        suffix = f"{described.name}_v{described.version}"
        query = query_pb2.GroupQuery(
            group=types_pb2.VersionRef(name=f"log_predictions_{suffix}"),
            from_event_time=encode_optional(from_event_time),
            to_event_time=encode_optional(to_event_time),
            latest_only=True,
        )
        request = offline_pb2.ReadFeaturesRequest(query=query)
        try:
            logged = read_rows(self._connection, request, progress, timeout_s)
        except NotFound:
            raise NotFound(
                f"no predictions of the view {described.name} v{described.version} are in the log yet;"
                " they come about a second after their answers"
            ) from None
        if deployment is not None:
            logged = logged.filter(pc.equal(logged["log_deployment"], deployment))
        query = query_pb2.GroupQuery(group=types_pb2.VersionRef(name=f"log_outcomes_{suffix}"), latest_only=True)
        request = offline_pb2.ReadFeaturesRequest(query=query)
        label = described.label
        try:
            outcomes = read_rows(self._connection, request, None, timeout_s)
        except NotFound:
            outcomes = pa.table(
                {
                    "prediction_id": pa.array([], pa.string()),
                    label.name: pa.array([], arrow_type(label)),
                    "event_time": pa.array([], pa.timestamp("us", "UTC")),
                }
            )
        joined = logged.drop_columns([name for name in _BOOKKEEPING if name in logged.column_names])
        row = pc.index_in(logged["prediction_id"], outcomes["prediction_id"])
        joined = joined.append_column(label.name, outcomes[label.name].take(row))
        joined = joined.append_column("observed_at", outcomes["event_time"].take(row))
        return from_table(joined, output)


def encode_request(
    deployment: str, rows: Any, event_time: datetime | None, request_id: str, *, explain: bool = False
) -> prediction_pb2.PredictRequest:
    """The request for rows as `predict` takes them. Raises InvalidValue."""
    return prediction_pb2.PredictRequest(
        deployment=deployment,
        columns=encode_rows(rows),
        event_time=encode_optional(event_time),
        request_id=request_id,
        explain=explain,
    )


def decode_predictions(answer: prediction_pb2.PredictResponse) -> Predictions:
    """The answer to a request."""
    return Predictions(
        ids=list(answer.prediction_ids),
        outputs={column.name: _values_of(column) for column in answer.outputs},
        model=decode_ref(answer.model),
        event_time=decode_instant(answer.event_time),
        missing=[_decode_missing(m) for m in answer.missing],
        repeated=answer.repeated_answer,
        explanation=decode_explanation(answer.explanation) if answer.HasField("explanation") else None,
        arms=tuple(ArmAnswer(a.arm, decode_ref(a.model), tuple(a.rows)) for a in answer.arms),
    )


def _values_of(column: types_pb2.Column) -> list[Any]:
    """The values of an output; outputs are small and mostly without NULLs, so no array is made."""
    if not column.validity:
        match column.WhichOneof("values"):
            case "float64_values":
                return list(column.float64_values.values)
            case "bool_values":
                return list(column.bool_values.values)
            case "int64_values":
                return list(column.int64_values.values)
            case "string_values":
                return list(column.string_values.values)
    return decode_column(column, "outputs").to_list()


def _decode_logged(response: prediction_log_pb2.GetPredictionResponse) -> LoggedPrediction:
    record, row = response.record, response.row

    def at_row(columns: Any) -> dict[str, Any]:
        return {column.name: decode_column(column).python(row) for column in columns}

    outcome = None
    if response.HasField("outcome"):
        logged = response.outcome
        value = decode_column(logged.value, "outcome").python(0)
        outcome = Outcome(value, decode_instant(logged.observed_at, "observed_at"), logged.revision)
    return LoggedPrediction(
        prediction_id=record.prediction_ids[row],
        deployment=record.deployment,
        model=decode_ref(record.model),
        model_sha256=record.model_sha256,
        view=decode_ref(record.view),
        event_time=decode_instant(record.event_time),
        served_at=decode_instant(record.served_at, "served_at"),
        latency_us=record.latency_us,
        replica=record.replica,
        incarnation=record.incarnation,
        sequence=record.first_sequence + row,
        request_id=record.request_id,
        caller=record.caller,
        applied_commit=record.applied_commit,
        entity_keys=at_row(record.entity_keys),
        request_features=at_row(record.request_features),
        features={feature.column.name: _decode_use(feature, row) for feature in record.features},
        outputs=at_row(record.outputs),
        outcome=outcome,
        arm=record.arm,
        arm_probability=record.arm_probability if record.arm else 1.0,
        arm_forced=record.arm_forced,
        shadow=record.shadow,
    )


def _decode_missing(message: prediction_pb2.MissingFeature) -> MissingFeature:
    at = decode_instant(message.last_known_at, "last_known_at") if message.HasField("last_known_at") else None
    status, policy = FeatureStatus(message.status), _POLICIES.get(message.policy, "")
    return MissingFeature(message.row, message.feature, status, policy, at)


def _decode_use(feature: prediction_log_pb2.LoggedFeature, row: int) -> FeatureUse:
    status = FeatureStatus(feature.statuses[row]) if feature.statuses else FeatureStatus.PRESENT
    policy = feature.policies[row] if feature.policies else 0
    commit = feature.last_known_commits[row] if feature.last_known_commits else 0
    return FeatureUse(
        decode_column(feature.column).python(row),
        status,
        _POLICIES.get(policy, ""),
        instant_from_micros(feature.last_known_event_time_micros[row]) if commit else None,
        commit,
    )


def request_headers(request_id: str) -> Headers:
    """What goes along with a request that has an id."""
    # A header holds no other characters. Without it the repeat may meet another replica, which predicts anew.
    plain = request_id.isascii() and request_id.isprintable() and request_id == request_id.strip()
    return ((REQUEST_ID_HEADER, request_id),) if request_id and plain else ()
