"""The rows of a run as its own files hold them, read for writing them in another form."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenmill.bulk.rows import JSON, Fields

CHUNK_BYTES = 8 << 20  # of JSON lines held at once: bounds the memory of every writer


@dataclass(frozen=True, slots=True)
class RunRows:
    """`rows` and `errors`: JSONL, either may be missing. `model` and `created` (Unix seconds) are the run's."""

    rows: Path
    errors: Path
    model: str | None
    created: int

    def done(self) -> Iterator[Fields]:
        """Finished rows, in the order of the file. Half a line at its end is none: a run may be writing it."""
        return _lines(self.rows)

    def failed(self) -> Iterator[Fields]:
        return _lines(self.errors)

    def chunks(self) -> Iterator[list[Fields]]:
        """Finished rows, many at a time, flat: see `flat_row`."""
        rows: list[Fields] = []
        num_bytes = 0
        for line in _raw_lines(self.rows):
            rows.append(flat_row(json.loads(line)))
            num_bytes += len(line)
            if num_bytes >= CHUNK_BYTES:
                yield rows
                rows, num_bytes = [], 0
        if rows:
            yield rows


def flat_row(row: Fields) -> Fields:
    """A row of a table: the input's columns as they were, then what the run adds.

    An input column that is called like one of ours comes as `input.<name>`.
    """
    usage = row.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    added: Fields = {
        "custom_id": row.get("custom_id"),
        "row_hash": row.get("row_hash"),
        "completion": row.get("text"),
        "token_ids": row.get("token_ids"),
        "finish_reason": row.get("finish_reason"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
    }
    added |= {name: value for name, value in row.items() if name not in (*added, "input", "text", "usage")}
    return {**_input_columns(row.get("input"), added), **added}


def _input_columns(source: JSON, added: Fields) -> Fields:
    if not isinstance(source, dict):
        return {}
    kept = {name: value for name, value in source.items() if name != "custom_id" or str(value) != added["custom_id"]}
    return {f"input.{name}" if name in added else name: value for name, value in kept.items()}


def _lines(path: Path) -> Iterator[Fields]:
    return (json.loads(line) for line in _raw_lines(path))


def _raw_lines(path: Path) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))
