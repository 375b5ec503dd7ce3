"""Rows with a common beginning are sent one after the other, so that a worker's prefix cache still has it. Pure.

Only among the next few: memory stays flat, and a row waits for others of its kind no longer than those take to read.
"""

from collections.abc import Iterable, Iterator

from tokenmill.bulk.planner import OutgoingRow

MAX_ROWS = 512
MAX_BYTES = 16 << 20


def neighbours(rows: Iterable[OutgoingRow]) -> Iterator[OutgoingRow]:
    """The same rows: as many as fit are taken together and sorted by their prompts."""
    held: list[OutgoingRow] = []
    num_bytes = 0
    for row in rows:
        held.append(row)
        num_bytes += len(row.submission.body)
        if len(held) >= MAX_ROWS or num_bytes >= MAX_BYTES:
            yield from sorted(held, key=_prompt)
            held.clear()
            num_bytes = 0
    yield from sorted(held, key=_prompt)


def _prompt(row: OutgoingRow) -> bytes:
    """Its body from the prompt on: what stands before is not what a model reads."""
    body = row.submission.body
    return body[max(body.find(b'"messages":'), body.find(b'"prompt":'), 0) :]
