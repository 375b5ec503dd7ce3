"""What a run has brought: its output and error files in OpenAI's form, also of a run that was stopped half way.

May be done again after a crash, with the same result. Knows no queue.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tokenmill.bulk.inputs.json_lines import parse_json_row
from tokenmill.bulk.output import OutputError, encode_line, folder_of
from tokenmill.bulk.outputs import paths_of, rows_of, write_output
from tokenmill.bulk.outputs.openai_files import error_line
from tokenmill.bulk.outputs.replacing import replacing
from tokenmill.bulk.rows import Fields, Row
from tokenmill.gateway.batches.record import Usage

Ending = Literal["completed", "failed", "cancelled", "expired"]

# Of requests that never got an answer: the run's own code, which the error file tells as batch_*, and a reason.
_UNFINISHED: dict[Ending, tuple[str, str]] = {
    "cancelled": ("cancelled", "This request was not executed: the batch was cancelled."),
    "expired": ("expired", "This request could not be executed before the completion window expired."),
}


class Harvest(NamedTuple):
    """`output`, `errors`: None where no request ended so."""

    output: Path | None
    errors: Path | None
    num_completed: int
    num_failed: int
    usage: Usage


def harvest(out: Path, source: Path, ending: Ending) -> Harvest:
    """`out`: the run's output; `source`: the batch's input. OSError: the disk."""
    paths = paths_of(out, "openai")
    if ending != "completed":
        with suppress(OutputError):  # it never began, so there are no rows
            write_output(rows_of(out), out, "openai")
    if ending in _UNFINISHED:
        _add_unfinished(source, out, paths.out_errors, *_UNFINISHED[ending])
    num_completed, usage = _look_at(out)
    num_failed = sum(1 for _ in _values(paths.out_errors))
    return Harvest(
        out if num_completed else None, paths.out_errors if num_failed else None, num_completed, num_failed, usage
    )


def clear(out: Path, source: Path) -> None:
    """What nobody needs any more once the two files are written: rows in the run's own form, and the input's link."""
    shutil.rmtree(folder_of(out), ignore_errors=True)
    source.unlink(missing_ok=True)


def _add_unfinished(source: Path, out: Path, errors: Path, code: str, reason: str) -> None:
    told = {value["custom_id"] for path in (out, errors) for value in _values(path)}
    before = list(_values(errors))
    missing = [row for row in _rows(source) if row.fields.get("custom_id") not in told]
    with replacing(errors) as file:
        file.writelines(encode_line(value) for value in before)
        file.writelines(encode_line(error_line(_unfinished(row, code, reason))) for row in missing)


def _unfinished(row: Row, code: str, reason: str) -> Fields:
    return {"row": row.number, "input": row.fields, "error": {"code": code, "message": reason}}


def _look_at(out: Path) -> tuple[int, Usage]:
    number = prompt_tokens = completion_tokens = 0
    for value in _values(out):
        usage: dict[str, int] = value["response"]["body"]["usage"]
        number += 1
        prompt_tokens += usage["prompt_tokens"]
        completion_tokens += usage["completion_tokens"]
    return number, Usage(prompt_tokens, completion_tokens)


def _values(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with path.open("rb") as file:
            yield from map(json.loads, file)


def _rows(source: Path) -> Iterator[Row]:
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = parse_json_row(number, line)
            if isinstance(row, Row):
                yield row
