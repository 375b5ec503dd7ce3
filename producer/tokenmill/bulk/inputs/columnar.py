"""Rows of Parquet and Arrow files, batch by batch: memory does not grow with the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from tokenmill.bulk.inputs.places import Place
from tokenmill.bulk.inputs.streams import import_pyarrow, opened, seekable
from tokenmill.bulk.inputs.values import Unreadable, Value, column_values
from tokenmill.bulk.rows import BadRow, Fields, InputError, Row

BATCH_ROWS = 1_024
ARROW_FILE_MAGIC = b"ARROW1"  # a file with an index; without it, it is a stream


def read_parquet(place: Place, first: int) -> Iterator[Row | BadRow]:
    """Rows numbered from `first`. InputError: no Parquet, damaged, or a column that has no JSON."""
    with seekable(place) as file, _parquet_file(place, file) as parquet:
        yield from rows_of(place, _batches(place, parquet.iter_batches(BATCH_ROWS, use_threads=False)), first)


def count_parquet(place: Place) -> int:
    with seekable(place) as file, _parquet_file(place, file) as parquet:
        return int(parquet.metadata.num_rows)


def read_arrow(place: Place, first: int) -> Iterator[Row | BadRow]:
    """Rows of an IPC file or stream, whichever it is, numbered from `first`."""
    with opened(place) as file:
        yield from rows_of(place, _batches(place, _ipc_batches(place, file)), first)


def count_arrow(place: Place) -> int:
    with opened(place) as file:
        return sum(batch.num_rows for batch in _batches(place, _ipc_batches(place, file)))


@contextmanager
def _parquet_file(place: Place, file: IO[bytes]) -> Iterator[Any]:
    pa = import_pyarrow("Parquet files")
    try:
        parquet = pa.parquet.ParquetFile(file, pre_buffer=False)
    except pa.ArrowException as error:
        raise InputError(f"{place.url}: no readable Parquet file: {error}") from error
    with parquet:
        yield parquet


def _ipc_batches(place: Place, file: IO[bytes]) -> Iterator[Any]:
    pa = import_pyarrow("Arrow files")
    source = pa.PythonFile(file, mode="r")
    is_file = place.compression is None and file.seekable() and file.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC
    if file.seekable():
        file.seek(0)
    if not is_file:
        yield from pa.ipc.open_stream(source)
        return
    reader = pa.ipc.open_file(source)
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)


def _batches(place: Place, batches: Iterator[Any]) -> Iterator[Any]:
    pa = import_pyarrow("Arrow files")
    try:
        yield from batches
    except pa.ArrowException as error:
        raise InputError(f"{place.url}: cannot be read: {error}") from error


def rows_of(place: Place, batches: Iterator[Any], first: int) -> Iterator[Row | BadRow]:
    """Rows of Arrow record batches, numbered from `first`; all have the columns of the first."""
    number = first
    for batch in batches:
        names = _names(place, batch)
        for start in range(0, batch.num_rows, BATCH_ROWS):  # an Arrow batch may be as large as its file
            part = batch.slice(start, BATCH_ROWS)
            columns = [column_values(name, part.column(place)) for place, name in enumerate(names)]
            for values in zip(*columns, strict=True):
                yield _row(number, dict(zip(names, values, strict=True)))
                number += 1


def _names(place: Place, batch: Any) -> list[str]:
    names = list(batch.schema.names)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{place.url}: names a column twice: {', '.join(repeated)}")
    if not names:
        raise InputError(f"{place.url}: has no columns")
    return names


def _row(number: int, values: dict[str, Value]) -> Row | BadRow:
    fields: Fields = {name: value for name, value in values.items() if not isinstance(value, Unreadable)}
    if len(fields) == len(values):
        return Row(number, fields)
    reasons = (value.reason for value in values.values() if isinstance(value, Unreadable))
    return BadRow(number, "; ".join(reasons), fields)
