"""Makes an input definite before a run reads it, twice and more: stdin is kept, an OpenAI Batch file recognised."""

import os
import shutil
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import IO

from tokenmill.bulk.batch_lines import is_batch_line
from tokenmill.bulk.inputs.json_lines import read_json_lines
from tokenmill.bulk.inputs.places import STDIN, find_places
from tokenmill.bulk.rows import InputError, Row
from tokenmill.bulk.spec import InputSpec

SPOOL = "stdin"  # in the run's folder; what was piped in, for counting, for reading and for the next run


def resolve_input(
    wanted: InputSpec, *, folder: Path, exclude: Collection[Path] = (), is_prompt_given: bool = False
) -> InputSpec:
    """With `-` replaced by a copy of stdin in `folder`, and `format` "openai" where the first line says so.

    `is_prompt_given`: a column or a template was named, so that the rows are no batch lines whatever they look like.
    """
    if STDIN in wanted.paths:
        copy = spool_stdin(sys.stdin.buffer, folder, wanted.format)
        wanted = replace(wanted, paths=tuple(str(copy) if path == STDIN else path for path in wanted.paths))
    if wanted.format is None and not is_prompt_given and _is_openai_batch(wanted, exclude):
        return replace(wanted, format="openai")
    return wanted


def spool_stdin(stdin: IO[bytes], folder: Path, format_name: str | None) -> Path:
    """All of it, on disk. Nothing piped in (a terminal, /dev/null): what an earlier run of this output kept."""
    copy = folder / f"{SPOOL}.{'jsonl' if format_name in (None, 'openai') else format_name}"
    if not stdin.isatty():
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"{SPOOL}.{os.getpid()}.new"
        with draft.open("wb") as file:
            shutil.copyfileobj(stdin, file, 1 << 20)
        if draft.stat().st_size > 0:
            os.replace(draft, copy)
        draft.unlink(missing_ok=True)
    if not copy.exists():
        raise InputError("nothing to read: pipe rows in, or name a file instead of -")
    return copy


def _is_openai_batch(wanted: InputSpec, exclude: Collection[Path]) -> bool:
    place = next(iter(find_places(wanted, exclude=exclude)), None)
    if place is None or place.kind != "jsonl":
        return False
    first = next(read_json_lines(place, 1), None)
    return isinstance(first, Row) and is_batch_line(first.fields)
