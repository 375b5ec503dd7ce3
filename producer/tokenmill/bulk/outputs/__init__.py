"""A finished run in the form that was asked for: JSONL is the run's own, all others are written from it at its end."""

from collections.abc import Callable
from pathlib import Path

from tokenmill.bulk.outputs.csv_file import write_csv
from tokenmill.bulk.outputs.openai_files import write_openai
from tokenmill.bulk.outputs.parquet_file import write_parquet
from tokenmill.bulk.outputs.paths import OUT_FORMATS, OutputPaths, out_format_of, own_files, paths_of
from tokenmill.bulk.outputs.source import RunRows
from tokenmill.bulk.outputs.written import rows_of

__all__ = ["OUT_FORMATS", "OutputPaths", "RunRows", "out_format_of", "own_files", "paths_of", "rows_of", "write_output"]

_WRITERS: dict[str, Callable[[RunRows, OutputPaths], None]] = {
    "csv": write_csv,
    "openai": write_openai,
    "parquet": write_parquet,
}


def write_output(rows: RunRows, out: Path, out_format: str) -> None:
    """Replaces `out` (and an error file of the format's own) by the rows as they are now; readers see all or nothing.

    For "jsonl" there is nothing to do, unless `out` is another file than the run's own. OutputError: cannot be written.
    """
    if out_format in _WRITERS:
        _WRITERS[out_format](rows, paths_of(out, out_format))
