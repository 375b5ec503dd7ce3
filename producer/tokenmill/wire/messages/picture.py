"""A worker's last steps as a picture: which rows were in the batch, and what each of them did. Holds no text.

Written while somebody looks, several times a second, so it is small: lists in a fixed order, as the fields stand here.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenmill.wire.errors import DecodeError

VERSION = 1


class StepShape(NamedTuple):
    """One step: how long after the one before it began, and its tokens by kind."""

    ms: float
    num_prefill_tokens: int
    num_decode_tokens: int


class RowBar(NamedTuple):
    """One sequence from the step in which it joined the batch (or was first seen) to the last one it was in.

    `row`: its place in the batch, used again by others afterwards. `prefill`: (step, tokens) of each chunk in the
    picture; from `decode_from` on it drew a token a step. `num_done` of at most `limit` tokens are computed.
    `finish_reason` None: it is in the batch, or was put out and waits.
    """

    row: int
    request_id: str
    choice: int
    first: int
    last: int
    num_prompt: int
    num_done: int
    limit: int
    prefill: tuple[tuple[int, int], ...] = ()
    decode_from: int | None = None
    finish_reason: str | None = None


class BatchPicture(NamedTuple):
    """The last steps up to number `step`, and the rows that were in any of them, in the order in which they joined."""

    step: int
    num_rows: int
    max_num_batched_tokens: int
    steps: tuple[StepShape, ...]
    bars: tuple[RowBar, ...]

    def encode(self) -> bytes:
        return json.dumps({"version": VERSION, **self._asdict()}, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, raw: bytes) -> "BatchPicture":
        """DecodeError: it is no picture, or one of another version."""
        try:
            told = json.loads(raw)
            if told["version"] != VERSION:
                raise DecodeError(f"a picture of version {told['version']!r}, not {VERSION}")
            return _decode(told)
        except (ValueError, TypeError, KeyError) as error:
            raise DecodeError(f"this is no picture of a batch: {error}") from error

    def describe(self) -> dict[str, Any]:
        """For JSON that people's pages read: bars by name."""
        bars = [bar._asdict() for bar in self.bars]
        return {**self._asdict(), "steps": self.steps, "bars": bars}


def _decode(told: Mapping[str, Any]) -> BatchPicture:
    return BatchPicture(
        int(told["step"]),
        int(told["num_rows"]),
        int(told["max_num_batched_tokens"]),
        tuple(StepShape(*shape) for shape in told["steps"]),
        tuple(_bar(*bar) for bar in told["bars"]),
    )


def _bar(row: int, request_id: str, choice: int, *rest: Any) -> RowBar:
    first, last, num_prompt, num_done, limit, prefill, decode_from, finish_reason = rest
    chunks = tuple((int(step), int(num_tokens)) for step, num_tokens in prefill)
    return RowBar(row, request_id, choice, first, last, num_prompt, num_done, limit, chunks, decode_from, finish_reason)
