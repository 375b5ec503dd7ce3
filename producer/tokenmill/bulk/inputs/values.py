"""Arrow's values as JSON's, column by column. Knows no files.

    JSON has them        null, booleans, integers, text, finite floats, lists, structs (objects)
    NaN, infinities      the strings "NaN", "Infinity", "-Infinity"
    bytes                base64
    decimals             a string with all digits
    dates and times      ISO 8601: "2026-11-23", "10:30:00.5", "2026-11-23T10:30:00Z" (no Z without a time zone)
    durations            seconds
    maps                 objects when the keys are text, else lists of [key, value]

A value that cannot be told in this way (text that is not UTF-8, a date beyond the year 9999) spoils its row alone.
"""

import base64
import math
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple, TypeAlias

from tokenmill.bulk.inputs.streams import import_pyarrow
from tokenmill.bulk.rows import JSON, InputError

Convert = Callable[[Any], JSON]

_UNITS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EPOCH = datetime(1970, 1, 1)


class Unreadable(NamedTuple):
    """Stands in a column for a value that JSON cannot have."""

    reason: str


Value: TypeAlias = "JSON | Unreadable"


class _Plan(NamedTuple):
    """How a type becomes JSON: cast to `target`, made Python objects, then converted. `convert` None: they are JSON."""

    target: Any
    convert: Convert | None = None


def column_values(name: str, column: Any) -> Sequence[Value]:
    """All values of an Arrow array or chunk. InputError: its type has no JSON."""
    pa = import_pyarrow("Arrow values")
    plan = _plan(pa, name, column.type)
    try:
        column = column if plan.target == column.type else column.cast(plan.target)
    except pa.ArrowException as error:
        raise InputError(f"column {name!r}: {column.type} cannot be read: {error}") from error
    try:
        return _converted(column.to_pylist(), plan.convert)
    except (ValueError, OverflowError):
        return [_one_value(name, scalar, plan.convert) for scalar in column]


def _converted(values: list[Any], convert: Convert | None) -> list[Value]:
    return values if convert is None else [None if value is None else convert(value) for value in values]


def _one_value(name: str, scalar: Any, convert: Convert | None) -> Value:
    try:
        return _converted([scalar.as_py()], convert)[0]
    except UnicodeDecodeError as error:
        return Unreadable(f"column {name!r}: not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, OverflowError) as error:
        return Unreadable(f"column {name!r}: {error}")


# --- what to do with each type ---


def _plan(pa: Any, name: str, kind: Any) -> _Plan:
    types = pa.types
    if types.is_dictionary(kind):
        return _plan(pa, name, kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _plan(pa, name, kind.storage_type)
    if types.is_struct(kind) or types.is_map(kind) or types.is_nested(kind):
        return _nested(pa, name, kind)
    if types.is_temporal(kind) and not types.is_interval(kind):
        return _temporal(pa, kind)
    if types.is_decimal(kind):
        return _Plan(pa.string())
    if types.is_floating(kind):
        return _Plan(kind, number)
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return _Plan(kind, _base64)
    if types.is_fixed_size_binary(kind):
        return _Plan(kind, _base64)
    if _is_plain(types, kind):
        return _Plan(kind)
    raise InputError(f"column {name!r}: its type, {kind}, has no form in JSON; leave the column out of the file")


def _is_plain(types: Any, kind: Any) -> bool:
    tests = (types.is_null, types.is_boolean, types.is_integer, types.is_string, types.is_large_string)
    return any(test(kind) for test in tests) or bool(types.is_string_view(kind))


def _nested(pa: Any, name: str, kind: Any) -> _Plan:
    types = pa.types
    if types.is_struct(kind):
        plans = {field.name: _plan(pa, name, field.type) for field in kind}
        return _Plan(pa.struct([(part, plan.target) for part, plan in plans.items()]), _struct(plans))
    if types.is_map(kind):
        key, item = _plan(pa, name, kind.key_type), _plan(pa, name, kind.item_type)
        return _Plan(pa.map_(key.target, item.target), _map(key, item))
    if types.is_union(kind):
        raise InputError(f"column {name!r}: its type, {kind}, has no form in JSON; leave the column out of the file")
    inner = _plan(pa, name, kind.value_type)
    convert = None if inner.convert is None else _list(inner)
    if inner.target == kind.value_type:
        return _Plan(kind, convert)
    size = (kind.list_size,) if types.is_fixed_size_list(kind) else ()
    make = pa.large_list if types.is_large_list(kind) else pa.list_
    return _Plan(make(inner.target, *size), convert)


def _struct(plans: dict[str, _Plan]) -> Convert | None:
    changing = {name: plan.convert for name, plan in plans.items() if plan.convert is not None}
    if not changing:
        return None

    def convert(value: dict[str, Any]) -> JSON:
        changed = {name: _converted([value[name]], one)[0] for name, one in changing.items()}
        return {**value, **changed}

    return convert


def _list(inner: _Plan) -> Convert:
    return lambda values: _converted(values, inner.convert)  # type: ignore[return-value]  # only whole columns hold Unreadable


def _map(key: _Plan, item: _Plan) -> Convert:
    def convert(pairs: list[tuple[Any, Any]]) -> JSON:
        keys = _converted([pair[0] for pair in pairs], key.convert)
        values = _converted([pair[1] for pair in pairs], item.convert)
        if all(isinstance(one, str) for one in keys):
            return dict(zip(keys, values, strict=True))  # type: ignore[arg-type]  # all are text
        return [[one, value] for one, value in zip(keys, values, strict=True)]  # type: ignore[list-item]  # as above

    return convert


def _temporal(pa: Any, kind: Any) -> _Plan:
    """As integers: what Python's own classes hold ends at microseconds."""
    types = pa.types
    if types.is_date32(kind):
        return _Plan(pa.int32(), lambda days: (date(1970, 1, 1) + timedelta(days=days)).isoformat())
    if types.is_date64(kind):
        return _Plan(pa.int64(), lambda ms: (date(1970, 1, 1) + timedelta(days=ms // 86_400_000)).isoformat())
    per_s = _UNITS_PER_S[kind.unit]
    if types.is_duration(kind):
        return _Plan(pa.int64(), lambda value: value // per_s if value % per_s == 0 else value / per_s)
    target = pa.int32() if types.is_time32(kind) else pa.int64()
    if types.is_time(kind):
        return _Plan(target, lambda value: _moment(value, per_s).partition("T")[2])
    zone = "Z" if kind.tz is not None else ""
    return _Plan(target, lambda value: _moment(value, per_s) + zone)


def _moment(value: int, per_s: int) -> str:
    """Seconds and, unless 0, as many digits of a fraction as it needs."""
    seconds, fraction = divmod(value, per_s)
    text = (_EPOCH + timedelta(seconds=seconds)).isoformat()
    digits = f"{fraction:0{len(str(per_s)) - 1}}".rstrip("0") if fraction else ""
    return f"{text}.{digits}" if digits else text


def number(value: float) -> JSON:
    """JSON has no NaN: it is told by its name, so that it is seen, and never taken for a number or for nothing."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _base64(value: bytes) -> JSON:
    return base64.b64encode(value).decode()
