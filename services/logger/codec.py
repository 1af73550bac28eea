"""Records and outcomes on the wire: decoding checks everything that does not depend on state."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

from foresight.logger.v1 import outcome_pb2, prediction_log_pb2
from foresight.types.v1 import types_pb2
from foresight.values import Column, InvalidValue, check_name, instant_from_micros, micros_from_instant
from foresight.values.errors import quoted
from foresight.values.features import LABEL_TYPES, VIEW_KEYS_MAX
from foresight.values.names import check_text
from foresight.wire import check_columns, decode_column, decode_columns, decode_instant, encode_column, encode_instant
from services.logger.entries import Entry
from services.logger.forgetting import Forgetting, Selection
from services.logger.named_requests import name_of
from services.logger.outcomes import OUTCOMES_MAX, Claims, LoggedOutcome, Outcome
from services.logger.records import PREDICTIONS_MAX, Incarnation, LogRecord
from services.logger.scalars import decode_scalar, encode_rows
from services.logger.targets import check_keys, target_of_id, targets_of_keys

STATUS_MAX = 6
REQUEST_ID_BYTES_MAX = 128
SELECTIONS_MAX = 1_024
VIEWS_MAX = 10_000
POLICY_MAX = 4
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_REPLICA = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


def decode_record(message: prediction_log_pb2.PredictionRecord, payload: bytes) -> LogRecord:
    """A record and its bytes, looked at column by column. Raises InvalidValue naming the field."""
    n = len(message.prediction_ids)
    if not 1 <= n <= PREDICTIONS_MAX:
        raise InvalidValue("prediction_ids", f"are {n}, not 1 to {PREDICTIONS_MAX}")
    source = decode_source(message.replica, message.incarnation)
    for i, prediction_id in enumerate(message.prediction_ids):
        check_id(prediction_id, f"prediction_ids[{i}]")
    check_request(message)
    check_text(message.caller, "caller")
    check_name(message.deployment, "deployment")
    check_reference(message.model, "model")
    check_reference(message.view, "view")
    check_sha256(message.model_sha256, "model_sha256")
    if message.transforms_sha256:
        check_sha256(message.transforms_sha256, "transforms_sha256")
    for field in ("event_time", "served_at"):
        if not message.HasField(field):
            raise InvalidValue(field, "is required")
    event_time = micros_from_instant(decode_instant(message.event_time))
    served_at = micros_from_instant(decode_instant(message.served_at, "served_at"))
    keys = decode_named(message.entity_keys, "entity_keys", n)
    check_named(message.request_features, "request_features", n)
    check_features(message.features, n)
    check_sources(message.sources, n)
    check_named(message.outputs, "outputs", n)
    if not message.outputs:
        raise InvalidValue("outputs", "are empty")
    return LogRecord(
        source=source,
        first_sequence=message.first_sequence,
        prediction_ids=tuple(message.prediction_ids),
        targets=tuple(targets_of_keys(message.deployment, keys, [event_time] * n)),
        deployment=message.deployment,
        view=message.view.name,
        view_version=message.view.version,
        event_time=event_time,
        payload=payload,
        name=name_of(message.caller, message.deployment, message.client_request_id),
        served_at=served_at,
    )


def check_request(message: prediction_log_pb2.PredictionRecord) -> None:
    """Checks what differs from request to request and is cheap to look at: of records that are recognised by their
    bytes too. Raises InvalidValue."""
    check_text(message.request_id, "request_id")
    if message.client_request_id:
        check_text(message.client_request_id, "client_request_id", REQUEST_ID_BYTES_MAX)
    check_arm(message)
    if message.repeats_prediction_id:
        raise InvalidValue("repeats_prediction_id", "is for the logger to say")
    if message.forgotten_offsets:
        raise InvalidValue("forgotten_offsets", "are for the logger to say")


def check_arm(message: prediction_log_pb2.PredictionRecord) -> None:
    """Checks what a record says of the arm. Raises InvalidValue."""
    if not message.arm:
        if message.arm_probability or message.arm_forced or message.shadow:
            raise InvalidValue("arm", "is required with a probability, a forced arm or a shadow")
        return
    check_name(message.arm, "arm")
    # Neither does NaN lie between them.
    if not 0.0 <= message.arm_probability <= 1.0:
        raise InvalidValue("arm_probability", "is not between 0 and 1")
    if message.shadow and (message.arm_forced or message.arm_probability):
        raise InvalidValue("arm_probability", "of a shadow is not 0, or it is forced")


def check_id(prediction_id: str, field: str = "prediction_id") -> str:
    """Returns the id when it is a UUID in its canonical form. Raises InvalidValue."""
    if not _UUID.match(prediction_id):
        raise InvalidValue(field, f"{quoted(prediction_id)} is not a UUID of 36 lower-case characters")
    return prediction_id


def decode_source(replica: str, incarnation: str) -> Incarnation:
    """The life of a replica. Raises InvalidValue."""
    if not _REPLICA.match(replica):
        raise InvalidValue("replica", "is not 1 to 63 letters, digits, dots, dashes and underscores")
    return Incarnation(replica, check_id(incarnation, "incarnation"))


def check_reference(reference: types_pb2.VersionRef, field: str, *, reserved: bool = False) -> None:
    """Raises InvalidValue for what names no version."""
    check_name(reference.name, f"{field}.name", reserved=reserved)
    if not 1 <= reference.version < 2**31:
        raise InvalidValue(f"{field}.version", "is not a version from 1 on")


def check_sha256(digest: str, field: str) -> None:
    """Raises InvalidValue for what is no digest in hexadecimal."""
    if not _SHA256.match(digest):
        raise InvalidValue(field, "is not 64 lower-case hex digits")


def decode_named(messages: Iterable[types_pb2.Column], field: str, rows: int) -> dict[str, Column]:
    """Columns by name, of so many rows, with names of fields. Raises InvalidValue."""
    columns = decode_columns(messages, field, rows)
    _check_names(tuple(columns), field)
    return columns


def check_named(messages: Sequence[types_pb2.Column], field: str, rows: int) -> None:
    """Checks columns as `decode_named` does, without building them."""
    check_columns(messages, field, rows)
    _check_names(tuple([message.name for message in messages]), field)


# Records of one deployment have the same names; an exception is not kept.
@functools.lru_cache(maxsize=256)
def _check_names(names: tuple[str, ...], field: str) -> None:
    for name in names:
        check_name(name, field, reserved=True)


def check_features(features: Sequence[prediction_log_pb2.LoggedFeature], n: int) -> None:
    """Raises InvalidValue naming the feature."""
    check_named([feature.column for feature in features], "features", n)
    for i, feature in enumerate(features):
        statuses, policies = feature.statuses, feature.policies
        if statuses and not _are_numbers(statuses, n, 1, STATUS_MAX):
            raise InvalidValue(f"features[{i}].statuses", f"is not {n} bytes of 1 to {STATUS_MAX}")
        if policies and not _are_numbers(policies, n, 0, POLICY_MAX):
            raise InvalidValue(f"features[{i}].policies", f"is not {n} bytes of 0 to {POLICY_MAX}")
        if feature.last_known_commits or feature.last_known_event_time_micros:
            _check_last_known(feature, f"features[{i}]", n)


def _check_last_known(feature: prediction_log_pb2.LoggedFeature, field: str, n: int) -> None:
    if len(feature.last_known_commits) != n:
        raise InvalidValue(f"{field}.last_known_commits", f"are {len(feature.last_known_commits)}, not {n}")
    if len(feature.last_known_event_time_micros) != n:
        count = len(feature.last_known_event_time_micros)
        raise InvalidValue(f"{field}.last_known_event_time_micros", f"are {count}, not {n}")
    for micros in feature.last_known_event_time_micros:
        instant_from_micros(micros, f"{field}.last_known_event_time_micros")


def _are_numbers(data: bytes, n: int, least: int, most: int) -> bool:
    return len(data) == n and min(data) >= least and max(data) <= most


def check_sources(sources: Sequence[prediction_log_pb2.LoggedSource], n: int) -> None:
    """Raises InvalidValue naming the source."""
    for i, source in enumerate(sources):
        check_reference(source.group, f"sources[{i}].group", reserved=True)
        if len(source.commits) != n:
            raise InvalidValue(f"sources[{i}].commits", f"are {len(source.commits)}, not {n}")
        if len(source.event_time_micros) != n:
            raise InvalidValue(f"sources[{i}].event_time_micros", f"are {len(source.event_time_micros)}, not {n}")
        for micros in source.event_time_micros:
            instant_from_micros(micros, f"sources[{i}].event_time_micros")


def decode_outcomes(request: outcome_pb2.RecordOutcomesRequest) -> Claims:
    """The claims of a request. Raises InvalidValue."""
    if not request.HasField("values"):
        raise InvalidValue("values", "is required")
    values = decode_column(request.values, "values") if request.values.name else _unnamed(request.values)
    n = len(values)
    if not 1 <= n <= OUTCOMES_MAX:
        raise InvalidValue("values", f"are {n}, not 1 to {OUTCOMES_MAX}")
    if values.type not in LABEL_TYPES:
        raise InvalidValue("values", f"are {values.type.value}; outcomes are bool, int64, float64 or string")
    if values.valid is not None:
        raise InvalidValue("values", "have a NULL; what is not known yet is not sent")
    revisions = list(request.revisions) or [0] * n
    _check_rows(revisions, "revisions", n)
    _check_instants(request.observed_at_micros, "observed_at_micros", n)
    outcomes = tuple(
        Outcome(revision, values.type, value, observed_at)
        for revision, value, observed_at in zip(revisions, encode_rows(values), request.observed_at_micros, strict=True)
    )
    targets, keys = _decode_targets(request, n)
    return Claims(tuple(targets), outcomes, not request.prediction_ids, keys)


def _unnamed(message: types_pb2.Column) -> Column:
    """The column of values whose name nobody needs."""
    named = types_pb2.Column()
    named.CopyFrom(message)
    named.name = "value"
    return decode_column(named, "values")


def _decode_targets(request: outcome_pb2.RecordOutcomesRequest, n: int) -> tuple[list[bytes], dict[str, Column]]:
    """The targets, and the columns of keys that name them."""
    if request.prediction_ids:
        if request.entity_keys or request.event_time_micros:
            raise InvalidValue("entity_keys", "and event times go without prediction ids")
        _check_rows(request.prediction_ids, "prediction_ids", n)
        ids = [check_id(p, f"prediction_ids[{i}]") for i, p in enumerate(request.prediction_ids)]
        return [target_of_id(prediction_id) for prediction_id in ids], {}
    if not request.entity_keys:
        raise InvalidValue("prediction_ids", "are empty and so are the entity keys: one of them is needed")
    check_name(request.deployment, "deployment")
    _check_instants(request.event_time_micros, "event_time_micros", n)
    keys = decode_named(request.entity_keys, "entity_keys", n)
    return targets_of_keys(request.deployment, keys, request.event_time_micros), keys


def _check_instants(instants: Sequence[int], field: str, n: int) -> None:
    _check_rows(instants, field, n)
    for i, micros in enumerate(instants):
        instant_from_micros(micros, f"{field}[{i}]")


def _check_rows(values: Sequence[object], field: str, n: int) -> None:
    if len(values) != n:
        raise InvalidValue(field, f"are {len(values)}, not {n} as the values")


def decode_forgetting(request: prediction_log_pb2.ForgetPredictionsRequest) -> Forgetting:
    """What is to be forgotten. Raises InvalidValue."""
    if not request.request_id:
        raise InvalidValue("request_id", "is required")
    check_text(request.request_id, "request_id", REQUEST_ID_BYTES_MAX)
    if not request.HasField("served_before"):
        raise InvalidValue("served_before", "is required")
    if not 1 <= len(request.selections) <= SELECTIONS_MAX:
        raise InvalidValue("selections", f"are {len(request.selections)}, not 1 to {SELECTIONS_MAX}")
    selections = []
    for i, message in enumerate(request.selections):
        try:
            selections.append(_decode_selection(message))
        except InvalidValue as error:
            raise error.within(f"selections[{i}]") from None
    served_before = micros_from_instant(decode_instant(request.served_before, "served_before"))
    return Forgetting(request.request_id, served_before, tuple(selections))


def _decode_selection(message: prediction_log_pb2.PredictionSelection) -> Selection:
    if not 1 <= len(message.views) <= VIEWS_MAX:
        raise InvalidValue("views", f"are {len(message.views)}, not 1 to {VIEWS_MAX:,}")
    for i, view in enumerate(message.views):
        check_reference(view, f"views[{i}]")
    keys = decode_named(message.keys, "keys", 1)
    if not keys or any(column.valid is not None for column in keys.values()):
        raise InvalidValue("keys", "need at least one column, and a value in each")
    check_keys(keys)
    if len(message.entity_keys) > VIEW_KEYS_MAX:
        raise InvalidValue("entity_keys", f"are more than {VIEW_KEYS_MAX}")
    _check_names(tuple(message.entity_keys), "entity_keys")
    views = frozenset((view.name, view.version) for view in message.views)
    return Selection(views, keys, tuple(sorted(message.entity_keys)))


def encode_entries(entries: Sequence[Entry]) -> list[prediction_log_pb2.LogEntry]:
    """The messages of entries of the log."""
    messages = []
    for entry in entries:
        message = prediction_log_pb2.LogEntry(commit=entry.position)
        if isinstance(entry.entry, LoggedOutcome):
            message.outcome.CopyFrom(encode_outcome(entry.entry))
        else:
            message.record.ParseFromString(entry.entry)
        messages.append(message)
    return messages


def encode_outcome(logged: LoggedOutcome) -> prediction_log_pb2.LoggedOutcome:
    """The message of an outcome of a logged prediction."""
    outcome = logged.outcome
    value = Column.build("value", outcome.type, [decode_scalar(outcome.type, outcome.value)])
    return prediction_log_pb2.LoggedOutcome(
        prediction_id=logged.prediction_id,
        deployment=logged.deployment,
        view=types_pb2.VersionRef(name=logged.view, version=logged.view_version),
        value=encode_column(value),
        observed_at=encode_instant(instant_from_micros(outcome.observed_at)),
        revision=outcome.revision,
    )
