"""Sampling parameters that a row brings along, from its columns. Knows no files and no queue."""

import json
from collections.abc import Iterable, Mapping

from tokenmill.bulk.rows import JSON, Fields
from tokenmill.bulk.templates import PromptError
from tokenmill.wire.messages import SamplingParams

PARAMETERS = frozenset(SamplingParams.model_fields)
MANY = "*"  # stands for a column that holds an object of several parameters

_INTEGERS = frozenset(("max_tokens", "min_tokens", "top_k", "seed", "n", "logprobs"))


class ParameterError(ValueError):
    """No way to say which columns hold parameters; the message says what is."""


def parse_parameters(items: Iterable[str]) -> dict[str, str]:
    """Parameter -> column, from `max_tokens`, `temperature=heat` and `settings`, a column that holds an object."""
    columns: dict[str, str] = {}
    for item in items:
        parameter, equals, column = (part.strip() for part in item.partition("="))
        name, column = (parameter, column) if equals else (parameter, parameter)
        if name not in PARAMETERS and equals:
            raise ParameterError(f"{name!r} is no parameter; there are {', '.join(sorted(PARAMETERS))}")
        name = name if name in PARAMETERS else MANY
        if not column or name in columns:
            raise ParameterError(f"{item!r}: say PARAMETER, PARAMETER=COLUMN, or one COLUMN that holds an object")
        columns[name] = column
    return columns


def row_parameters(columns: Mapping[str, str], fields: Fields) -> Fields:
    """What this row says. Where it says nothing (no value, an empty cell), the run's own setting stands.

    PromptError: no object where one is needed, or with a name that is no parameter. The request checks the values.
    """
    asked = _several(fields, columns[MANY]) if MANY in columns else {}
    single = {name: fields.get(column) for name, column in columns.items() if name != MANY}
    return {name: _value(name, value) for name, value in (asked | single).items() if value not in (None, "")}


def _several(fields: Fields, column: str) -> Fields:
    value = fields.get(column)
    if isinstance(value, str) and value:
        value = _parsed(value)
    if value in (None, ""):
        return {}
    if not isinstance(value, dict):
        raise PromptError(f"the column {column!r} must hold an object of parameters")
    if unknown := value.keys() - PARAMETERS:
        raise PromptError(f"the column {column!r}: {min(unknown)!r} is no parameter")
    return value


def _value(name: str, value: JSON) -> JSON:
    """As JSON would have it: a table's cells are text, and whole numbers beside empty cells become floats."""
    if isinstance(value, str) and (name != "stop" or value.startswith("[")):
        value = _parsed(value)
    if isinstance(value, float) and value.is_integer() and name in _INTEGERS:
        return int(value)
    return value


def _parsed(text: str) -> JSON:
    """The text itself when it is no JSON; NaN is a number here, so that it is refused as one."""
    try:
        value: JSON = json.loads(text)
    except ValueError:
        return text
    return value
