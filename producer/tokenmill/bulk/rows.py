"""Reads JSONL and CSV files as a stream of rows, good and bad. Knows nothing of prompts, queues or results."""

import csv
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

JSON: TypeAlias = "dict[str, JSON] | list[JSON] | str | int | float | bool | None"
Fields: TypeAlias = dict[str, JSON]

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
CSV_DELIMITERS = {".csv": ",", ".tsv": "\t"}
MAX_CSV_FIELD_CHARS = 1 << 24  # Python's own 128 Ki are shorter than a long document; ours still ends a missing quote
MAX_SHOWN_CHARS = 1_000  # of an unreadable row, kept in the errors file: enough to recognise it
BOM = b"\xef\xbb\xbf"


class InputError(Exception):
    """The file as a whole cannot be read as rows; the message says why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input; `number` counts rows from 1, blank lines left out."""

    number: int
    fields: Fields


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read, with the reason; the rows around it are fine. `source` is its text or its fields."""

    number: int
    reason: str
    source: JSON


def read_rows(path: Path, *, limit: int | None = None) -> Iterator[Row | BadRow]:
    """The first `limit` rows of a .jsonl, .ndjson, .csv or .tsv file, one at a time: memory does not grow with it."""
    return itertools.islice(_open_rows(path), limit)


def count_rows(path: Path, *, limit: int | None = None) -> int:
    """How many rows `read_rows` will give. JSONL is only scanned for line ends, so this is fast."""
    if path.suffix.lower() in JSON_LINES_SUFFIXES:
        with path.open("rb") as file:
            return sum(1 for _ in itertools.islice((line for line in file if _is_content(line)), limit))
    return sum(1 for _ in read_rows(path, limit=limit))


def _open_rows(path: Path) -> Iterator[Row | BadRow]:
    suffix = path.suffix.lower()
    if suffix in JSON_LINES_SUFFIXES:
        return _read_json_lines(path)
    if suffix in CSV_DELIMITERS:
        return _read_csv(path, delimiter=CSV_DELIMITERS[suffix])
    known = ", ".join((*JSON_LINES_SUFFIXES, *CSV_DELIMITERS))
    raise InputError(f"{path.name}: cannot tell the format by the name; it should end in one of {known}")


def _is_content(line: bytes) -> bool:
    return bool(line.removeprefix(BOM).strip())


def _read_json_lines(path: Path) -> Iterator[Row | BadRow]:
    with path.open("rb") as file:  # bytes: only \n ends a line, and one row that is not UTF-8 spoils no other
        lines = (line for line in file if _is_content(line))
        for number, line in enumerate(lines, start=1):
            yield parse_json_row(number, line.removeprefix(BOM) if number == 1 else line)


def parse_json_row(number: int, line: bytes) -> Row | BadRow:
    try:
        value: JSON = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return BadRow(number, f"not UTF-8: {error.reason} at byte {error.start}", _shown(line))
    except (ValueError, RecursionError) as error:
        return BadRow(number, f"not JSON: {error}", _shown(line))
    if not isinstance(value, dict):
        return BadRow(number, f"a row must be a JSON object, this is {_kind(value)}", _shown(line))
    return Row(number, value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _kind(value: JSON) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _shown(line: bytes) -> str:
    return line.decode("utf-8", errors="replace").strip()[:MAX_SHOWN_CHARS]


def _read_csv(path: Path, *, delimiter: str) -> Iterator[Row | BadRow]:
    csv.field_size_limit(MAX_CSV_FIELD_CHARS)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = _read_header(path, reader)
        records = (record for record in _each_record(reader) if record)
        for number, record in enumerate(records, start=1):
            yield _csv_row(number, header, record)


def _read_header(path: Path, reader: "Iterator[list[str]]") -> list[str]:
    try:
        header = next((record for record in reader if record), None)
    except csv.Error as error:
        raise InputError(f"{path.name}: the header cannot be read: {error}") from error
    if header is None:
        raise InputError(f"{path.name}: no header line; the first line of a CSV file names the columns")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise InputError(f"{path.name}: the header names a column twice: {', '.join(repeated)}")
    return header


def _each_record(reader: "Iterator[list[str]]") -> Iterator[list[str] | csv.Error]:
    """Records, and in the place of an unreadable one its error: the reader itself goes on with the next line."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error


def _csv_row(number: int, header: list[str], record: list[str] | csv.Error) -> Row | BadRow:
    if isinstance(record, csv.Error):
        return BadRow(number, f"not CSV: {record}", None)
    if not all(_is_unicode(value) for value in record):
        return BadRow(number, "not UTF-8", [_shown(value.encode("utf-8", "surrogateescape")) for value in record])
    if len(record) != len(header):
        return BadRow(number, f"{len(record)} fields where the header names {len(header)}", list(record))
    return Row(number, dict(zip(header, record, strict=True)))


def _is_unicode(value: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in value) if not value.isascii() else True
