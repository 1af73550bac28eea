"""Whether an Arrow column fits a field, and the cast when it does without losing anything.

Allowed: narrower to wider integers and floats, any encoding of text, timestamps of any unit with a time zone (cut to
microseconds), integers up to 2^53 for floats, lists of any float for vectors. Refused: floats for integers, dates and
naive timestamps, NaN and infinities (NULL says "unknown"), text that is not NFC.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from foresight.tables import arrow_type
from foresight.values import DataType, Field
from foresight.values.instants import MICROS_MAX, MICROS_MIN
from foresight.values.names import STRING_BYTES_MAX

EXACT_FLOAT_MAX = 2**53
INT64_MAX = 2**63 - 1
UTC_MICROS = pa.timestamp("us", "UTC")
_NOT_FINITE, _USE_NULL = "has a NaN or an infinity", "use NULL for an unknown number"


class Unfit(Exception):
    """A column does not fit; the text says why and goes to the caller.

    `problem` is true of `rows` rows (0: of the column as a whole), `advice` says what to do, or is ''.
    """

    def __init__(self, problem: str, rows: int = 0, advice: str = "") -> None:
        super().__init__(f"{problem}; {advice}" if advice else problem)
        self.problem = problem
        self.rows = rows
        self.advice = advice


def conform(column: pa.ChunkedArray | pa.Array, field: Field) -> pa.Array:
    """The column as one array of the field's Arrow type. Raises Unfit."""
    array = one_array(column)
    type = array.type
    if pa.types.is_null(type):
        return array.cast(arrow_type(field))
    try:
        match field.type:
            case DataType.INT64:
                return _integers(array)
            case DataType.FLOAT64:
                return _floats(array)
            case DataType.BOOL:
                if pa.types.is_boolean(type):
                    return array
            case DataType.STRING:
                if is_text(type):
                    return _texts(array)
            case DataType.TIMESTAMP:
                return _instants(array)
            case DataType.FLOAT_VECTOR:
                return _vectors(array, field.dimension)
    except pa.ArrowInvalid:
        raise Unfit(f"has values of {type} that do not fit into {field.type.value}") from None
    raise Unfit(f"is {type}, not {field.type.value}")


def one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The chunks as one array, dictionaries decoded."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def is_text(type: pa.DataType) -> bool:
    """Whether an Arrow type holds text in any layout."""
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))


def _integers(array: pa.Array) -> pa.Array:
    if not pa.types.is_integer(array.type):
        raise Unfit(f"is {array.type}, not int64")
    if array.type == pa.uint64():
        _refuse(pc.greater(array, pa.scalar(INT64_MAX, pa.uint64())), "has an integer beyond 2^63 - 1")
    return array if array.type == pa.int64() else array.cast(pa.int64())


def _floats(array: pa.Array) -> pa.Array:
    if pa.types.is_integer(array.type):
        bounds = pc.min_max(array)
        least, most = bounds["min"].as_py(), bounds["max"].as_py()
        if most is not None and (most > EXACT_FLOAT_MAX or least < -EXACT_FLOAT_MAX):
            # An unsigned type has no negative bound.
            beyond = pc.greater(array, EXACT_FLOAT_MAX)
            if least < 0:
                beyond = pc.or_(beyond, pc.less(array, -EXACT_FLOAT_MAX))
            _refuse(beyond, "has an integer beyond 2^53, which would lose digits as a float")
        return array.cast(pa.float64())
    if not pa.types.is_floating(array.type):
        raise Unfit(f"is {array.type}, not float64")
    array = array if array.type == pa.float64() else array.cast(pa.float64())
    if not _all_finite(array):
        _refuse(pc.invert(pc.is_finite(array)), _NOT_FINITE, _USE_NULL)
    return array


def _texts(array: pa.Array) -> pa.Array:
    array = array if pa.types.is_string(array.type) else array.cast(pa.string())
    if (pc.max(pc.binary_length(array)).as_py() or 0) > STRING_BYTES_MAX:
        long = pc.greater(pc.binary_length(array), STRING_BYTES_MAX)
        _refuse(long, f"has a text of more than {STRING_BYTES_MAX} bytes")
    _refuse(pc.match_substring(array, "\0"), "has a text with a NUL character")
    if not pc.all(pc.string_is_ascii(array), min_count=0).as_py():
        different = pc.not_equal(pc.utf8_normalize(array, "NFC"), array)
        _refuse(different, "has a text that is not in Unicode normal form C")
    return array


def _instants(array: pa.Array) -> pa.Array:
    type = array.type
    if not pa.types.is_timestamp(type):
        raise Unfit(f"is {type}, not a timestamp with a time zone")
    if type.tz is None:
        raise Unfit("is a timestamp without a time zone")
    if type.unit == "ns":
        # Cutting must not move an instant before 1970 into the future, as a plain cast would; in UTC, as it would go
        # through local times, of which some come twice and some never.
        array = pc.floor_temporal(array.cast(pa.timestamp("ns", "UTC")), unit="microsecond")
    array = array if array.type == UTC_MICROS else array.cast(UTC_MICROS)
    micros = array.cast(pa.int64())
    bounds = pc.min_max(micros)
    least, most = bounds["min"].as_py(), bounds["max"].as_py()
    if most is not None and (least < MICROS_MIN or most > MICROS_MAX):
        outside = pc.or_(pc.less(micros, MICROS_MIN), pc.greater(micros, MICROS_MAX))
        _refuse(outside, "has an instant outside of the years 1 to 9999")
    return array


def _vectors(array: pa.Array, dimension: int) -> pa.Array:
    type = array.type
    if not (pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)):
        raise Unfit(f"is {type}, not a list of {dimension} floats")
    if not pa.types.is_floating(type.value_type):
        raise Unfit(f"is a list of {type.value_type}, not of floats")
    present = array.drop_null()
    _refuse(pc.not_equal(pc.list_value_length(present), dimension), f"has a vector that has not {dimension} floats")
    values = present.flatten().cast(pa.float32(), safe=False)
    if values.null_count:
        raise Unfit("has a vector with a NULL in it", _vectors_with(values.is_null(), dimension))
    if not _all_finite(values):
        raise Unfit(_NOT_FINITE, _vectors_with(pc.invert(pc.is_finite(values)), dimension), _USE_NULL)
    vectors = pa.FixedSizeListArray.from_arrays(values, dimension)
    if not array.null_count:
        return vectors.cast(pa.list_(pa.float32(), dimension))
    # Puts the NULL rows back between the vectors.
    positions = pc.cumulative_sum(pc.cast(array.is_valid(), pa.int64()))
    index = pc.if_else(array.is_valid(), pc.subtract(positions, 1), pa.scalar(None, pa.int64()))
    return vectors.take(index).cast(pa.list_(pa.float32(), dimension))


def _refuse(flags: pa.Array, problem: str, advice: str = "") -> None:
    """Raises Unfit when a flag is set; NULLs are none."""
    if pc.any(flags, min_count=0).as_py():
        raise Unfit(problem, int(pc.sum(flags).as_py()), advice)


def _all_finite(array: pa.Array) -> bool:
    return bool(pc.all(pc.is_finite(array), min_count=0).as_py())


def _vectors_with(flags: pa.Array, dimension: int) -> int:
    """How many vectors have a flag among their values."""
    return len(pc.unique(pc.divide(pc.indices_nonzero(flags), pa.scalar(dimension, pa.uint64()))))
