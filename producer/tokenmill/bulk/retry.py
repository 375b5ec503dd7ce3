"""Which rows a run tries again that failed and are not bad: from its errors file. Knows no queue.

A run begins with an empty errors file, so what is to be tried again is written down first: a retry that is killed half
way is not shortened to what it had failed at until then.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from tokenmill.bulk.output import folder_of

RETRY = "retry.json"

# The row itself is at fault, or what the run asks of the model: a second try ends the same way.
BAD_ROW_CODES = frozenset(
    {
        "bad_row",
        "bad_prompt",
        "conflict",
        "context_length_exceeded",
        "invalid_request",
        "model_not_found",
        "no_chat_template",
        "too_large",
        "unknown_field",
        "unsupported_field",
    }
)


def begin_retry(path: Path, errors_path: Path) -> frozenset[str]:
    """The row hashes to try again: what failed, and what an earlier retry did not come to."""
    names = frozenset({*_remembered(path), *_failed(errors_path)})
    target = folder_of(path) / RETRY
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".new")
    draft.write_text(json.dumps(sorted(names)))
    os.replace(draft, target)
    return names


def end_retry(path: Path) -> None:
    """All of them had their turn: what failed again is in the errors file."""
    (folder_of(path) / RETRY).unlink(missing_ok=True)


def _remembered(path: Path) -> list[str]:
    try:
        names: list[str] = json.loads((folder_of(path) / RETRY).read_bytes())
    except (FileNotFoundError, ValueError):
        return []
    return names


def _failed(errors_path: Path) -> Iterator[str]:
    if not errors_path.exists():
        return
    with errors_path.open("rb") as file:
        for line in file:
            error = _read(line)
            if error is not None and error[1] not in BAD_ROW_CODES:
                yield error[0]


def _read(line: bytes) -> tuple[str, str] | None:
    """(row hash, code); None: no row that was ever sent, or half a line of a killed run."""
    try:
        value = json.loads(line)
        return str(value["row_hash"]), str(value["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return None
