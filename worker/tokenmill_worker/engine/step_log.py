"""What the engine's steps were, kept for a moment until somebody takes it. Knows neither who looks nor what for."""

import time
from collections import deque
from typing import NamedTuple

from tokenmill_worker.engine.api import FinishReason
from tokenmill_worker.engine.scheduler import Scheduled

MOST_KEPT = 4_096  # steps and ends; who takes them four times a second misses none at a few thousand steps a second


class StepSeen(NamedTuple):
    """A step that was scheduled; `at_s` by the monotonic clock."""

    number: int
    at_s: float
    step: Scheduled


class EndSeen(NamedTuple):
    """A choice of a request got its last token, or will get no more."""

    request_id: str
    index: int  # type: ignore[assignment]  # of the choice; nobody searches one with tuple.index
    finish_reason: FinishReason


class StepLog:
    """The engine's thread adds, which costs it a microsecond; any one other thread takes. The oldest are forgotten."""

    def __init__(self) -> None:
        self._seen: deque[StepSeen | EndSeen] = deque(maxlen=MOST_KEPT)

    def add_step(self, number: int, step: Scheduled) -> None:
        self._seen.append(StepSeen(number, time.monotonic(), step))

    def add_end(self, request_id: str, index: int, finish_reason: FinishReason) -> None:
        self._seen.append(EndSeen(request_id, index, finish_reason))

    def take(self) -> list[StepSeen | EndSeen]:
        """All that was seen since the last call, in order."""
        return [self._seen.popleft() for _ in range(len(self._seen))]
