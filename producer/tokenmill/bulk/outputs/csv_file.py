"""A run's rows as CSV: input columns, then ours. Lists, objects and booleans are written as JSON."""

import codecs
import csv
import json

from tokenmill.bulk.outputs.paths import OutputPaths
from tokenmill.bulk.outputs.replacing import replacing
from tokenmill.bulk.outputs.source import RunRows
from tokenmill.bulk.rows import JSON


def write_csv(rows: RunRows, paths: OutputPaths) -> None:
    """Two passes: the header names every column that any row has."""
    names = dict.fromkeys(name for chunk in rows.chunks() for row in chunk for name in row)
    with replacing(paths.out) as file:
        writer = csv.writer(codecs.getwriter("utf-8")(file), lineterminator="\n")
        writer.writerow(names)
        for chunk in rows.chunks():
            writer.writerows([_cell(row.get(name)) for name in names] for row in chunk)


def _cell(value: JSON) -> str | int | float | None:
    if value is None or (isinstance(value, (str, int, float)) and not isinstance(value, bool)):
        return value
    return json.dumps(value, ensure_ascii=False)
