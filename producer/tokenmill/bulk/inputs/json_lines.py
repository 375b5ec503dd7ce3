"""Rows of JSON Lines: one object a line. Knows no files."""

import json
from collections.abc import Iterator
from typing import NoReturn

from tokenmill.bulk.inputs.places import Place
from tokenmill.bulk.inputs.streams import opened
from tokenmill.bulk.rows import JSON, BadRow, Row

MAX_SHOWN_CHARS = 1_000  # of an unreadable row, kept in the errors file: enough to recognise it
BOM = b"\xef\xbb\xbf"


def read_json_lines(place: Place, first: int) -> Iterator[Row | BadRow]:
    """Rows numbered from `first`; blank lines are none. A line that is no row is a BadRow."""
    with opened(place) as file:  # bytes: only \n ends a line, and one row that is not UTF-8 spoils no other
        lines = (line for line in file if _is_content(line))
        for number, line in enumerate(lines, start=first):
            yield parse_json_row(number, line.removeprefix(BOM) if number == first else line)


def count_json_lines(place: Place) -> int:
    """Line ends are looked for and nothing else, so this is fast."""
    with opened(place) as file:
        return sum(1 for line in file if _is_content(line))


def parse_json_row(number: int, line: bytes) -> Row | BadRow:
    try:
        value: JSON = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return BadRow(number, f"not UTF-8: {error.reason} at byte {error.start}", shown(line))
    except (ValueError, RecursionError) as error:
        return BadRow(number, f"not JSON: {error}", shown(line))
    if not isinstance(value, dict):
        return BadRow(number, f"a row must be a JSON object, this is {_kind(value)}", shown(line))
    return Row(number, value)


def shown(line: bytes) -> str:
    """What the errors file keeps of an unreadable row."""
    return line.decode("utf-8", errors="replace").strip()[:MAX_SHOWN_CHARS]


def _is_content(line: bytes) -> bool:
    return bool(line.removeprefix(BOM).strip())


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _kind(value: JSON) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
