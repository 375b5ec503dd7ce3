"""Rows of CSV and TSV files; every value is text. Knows no prompts."""

import csv
import io
from collections.abc import Iterator
from pathlib import PurePosixPath

from tokenmill.bulk.inputs.json_lines import shown
from tokenmill.bulk.inputs.places import Place
from tokenmill.bulk.inputs.streams import opened
from tokenmill.bulk.rows import BadRow, InputError, Row

DELIMITERS = {"csv": ",", "tsv": "\t"}
MAX_FIELD_CHARS = 1 << 24  # Python's own 128 Ki are shorter than a long document; ours still ends a missing quote


def read_delimited(place: Place, first: int) -> Iterator[Row | BadRow]:
    """Rows numbered from `first`. InputError: no header, or one that names a column twice."""
    csv.field_size_limit(MAX_FIELD_CHARS)
    with (
        opened(place) as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        reader = csv.reader(file, delimiter=DELIMITERS[place.kind], strict=True)
        header = _read_header(PurePosixPath(place.url).name, reader)
        records = (record for record in _each_record(reader) if record)
        for number, record in enumerate(records, start=first):
            yield _row(number, header, record)


def count_delimited(place: Place) -> int:
    """A newline may stand inside a field, so all of it is parsed."""
    return sum(1 for _ in read_delimited(place, 1))


def _read_header(name: str, reader: "Iterator[list[str]]") -> list[str]:
    try:
        header = next((record for record in reader if record), None)
    except csv.Error as error:
        raise InputError(f"{name}: the header cannot be read: {error}") from error
    if header is None:
        raise InputError(f"{name}: no header line; the first line of a CSV file names the columns")
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise InputError(f"{name}: the header names a column twice: {', '.join(repeated)}")
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


def _row(number: int, header: list[str], record: list[str] | csv.Error) -> Row | BadRow:
    if isinstance(record, csv.Error):
        return BadRow(number, f"not CSV: {record}", None)
    if not all(_is_unicode(value) for value in record):
        return BadRow(number, "not UTF-8", [shown(value.encode("utf-8", "surrogateescape")) for value in record])
    if len(record) != len(header):
        return BadRow(number, f"{len(record)} fields where the header names {len(header)}", list(record))
    return Row(number, dict(zip(header, record, strict=True)))


def _is_unicode(value: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in value) if not value.isascii() else True
