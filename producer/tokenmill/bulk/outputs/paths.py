"""Which files a run writes. `out` is what the user asked for; the run's own rows are JSONL, there or beside it."""

from pathlib import Path
from typing import NamedTuple

from tokenmill.bulk.output import OutputError, errors_of, folder_of
from tokenmill.bulk.spec import RunSpec

OUT_FORMATS = ("jsonl", "parquet", "csv", "openai")
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".csv": "csv"}


class OutputPaths(NamedTuple):
    """`rows` and `errors` are the run's own, appended while it goes on; `out` and `out_errors` what the user gets."""

    rows: Path
    errors: Path
    out: Path
    out_errors: Path


def out_format_of(spec: RunSpec) -> str:
    """What was asked for, else by the name; answers to an OpenAI Batch file have OpenAI's shape.

    OutputError: no such format.
    """
    chosen = spec.out_format or _SUFFIXES.get(Path(spec.out).suffix.lower(), "jsonl")
    if chosen not in OUT_FORMATS:
        raise OutputError(f"no output format {chosen!r}; there are {', '.join(OUT_FORMATS)}")
    if spec.out_format is None and chosen == "jsonl" and spec.input.format == "openai":
        return "openai"
    return chosen


def paths_of(out: Path, out_format: str) -> OutputPaths:
    """In OpenAI's shape and as a table, rows cannot be appended safely: those of the run are in its folder then."""
    out_errors = out.with_suffix(".errors.jsonl")
    if out_format == "jsonl":
        errors = errors_of(out)
        return OutputPaths(out, errors, out, errors)
    rows = folder_of(out) / "rows.jsonl"
    errors = folder_of(out) / "errors.jsonl" if out_format == "openai" else out_errors
    return OutputPaths(rows, errors, out, out_errors)


def own_files(out: Path) -> tuple[Path, ...]:
    """What a run into `out` writes and must not take for its input when that is a folder or a glob."""
    return (out, errors_of(out), out.with_suffix(".errors.jsonl"))
