"""Datasets as a stream of rows, good and bad: files of many formats, folders, globs, URLs, the Hugging Face hub.

Knows nothing of prompts, queues or results. One file per format; each gives rows numbered from 1 over all places.
"""

import itertools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from tokenmill.bulk.inputs.columnar import count_arrow, count_parquet, read_arrow, read_parquet
from tokenmill.bulk.inputs.delimited import count_delimited, read_delimited
from tokenmill.bulk.inputs.hub import count_hub, read_hub
from tokenmill.bulk.inputs.json_lines import count_json_lines, read_json_lines
from tokenmill.bulk.inputs.places import FORMATS, STDIN, Kind, Place, find_places
from tokenmill.bulk.rows import BadRow, Row
from tokenmill.bulk.spec import InputSpec

__all__ = ["FORMATS", "STDIN", "count_rows", "open_rows"]

_READERS: dict[Kind, Callable[[Place, int], Iterator[Row | BadRow]]] = {
    "jsonl": read_json_lines,
    "csv": read_delimited,
    "tsv": read_delimited,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "hub": read_hub,
}
_COUNTERS: dict[Kind, Callable[[Place], int | None]] = {
    "jsonl": count_json_lines,
    "csv": count_delimited,
    "tsv": count_delimited,
    "parquet": count_parquet,
    "arrow": count_arrow,
    "hub": count_hub,
}


def open_rows(wanted: InputSpec, *, limit: int | None = None, exclude: Collection[Path] = ()) -> Iterator[Row | BadRow]:
    """The first `limit` rows of all places, one at a time: memory does not grow with them.

    `exclude`: local files that folders and globs leave out, such as the run's own output.

    InputError: a place that is not there, or cannot be read (any further); rows before it were given.
    """
    return itertools.islice(_rows_of(find_places(wanted, exclude=exclude)), limit)


def count_rows(wanted: InputSpec, *, limit: int | None = None, exclude: Collection[Path] = ()) -> int | None:
    """How many rows `open_rows` will give; None where only reading all of it over the network would tell."""
    total = 0
    for place in find_places(wanted, exclude=exclude):
        count = _COUNTERS[place.kind](place)
        if count is None:
            return None
        total += count
        if limit is not None and total >= limit:
            return limit
    return total


def _rows_of(places: list[Place]) -> Iterator[Row | BadRow]:
    number = 0
    for place in places:
        for row in _READERS[place.kind](place, number + 1):
            number = row.number
            yield row
