"""When a run will end: what is left of it, played through. Pure: it is told rows, workers and times.

The rows rate of the last moments is no guide: of rows that begin together the shortest end first, and at the end the
batch empties. So each row's length is known (its max_tokens) or drawn from those seen, rows leave and others take
their slots, and a step costs what steps of so many rows cost on these workers.
"""

import math
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from itertools import count
from statistics import fmean, median
from typing import NamedTuple

from tokenmill.bulk.lengths import Lengths, Survival
from tokenmill.bulk.pulse import USUAL, Pulse, StepLaw, WorkerTold

LOOK_INTERVAL_S = 0.5  # at the workers, who speak once a second: what they say is not old then
PLAY_INTERVAL_S = 1.0
DEFAULT_MAX_TOKENS = 256  # the worker's own, for rows that say none
NUM_RECENT = 16  # finished rows that say how long a row takes to begin, and how fast it is
NUM_KNOWN = 512  # rows whose max_tokens stand for those not read yet
MAX_PLAYED = 2_000  # rows played through; of more, each stands for several
GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples fill the unit interval evenly, however many are taken


@dataclass(slots=True)
class _Row:
    max_tokens: int
    begun_s: float = 0.0
    begun_steps: float = 0.0


class Estimator:
    """Knows a run's rows in flight: those with a slot, and those that wait for one in the order they were sent."""

    def __init__(self) -> None:
        self._pulse = Pulse()
        self._lengths = Lengths()
        self._running: dict[str, _Row] = {}
        self._waiting: dict[str, _Row] = {}
        self._num_slots = self._num_workers = 0
        self._num_foreign: deque[int] = deque(maxlen=5)  # rows of others on the same workers, at the last looks
        self._known: deque[int] = deque(maxlen=NUM_KNOWN)
        self._lags: deque[float] = deque(maxlen=NUM_RECENT)  # steps that rows took and had no token of
        self._speeds: deque[float] = deque(maxlen=NUM_RECENT)  # tokens a second
        self._num_answers = self._prompt_tokens = 0
        self._played_s = -math.inf
        self._eta_s: float | None = None

    # --- what happens ---

    def hear(self, workers: Mapping[str, WorkerTold], *, now_s: float) -> None:
        """All live workers, about every LOOK_INTERVAL_S."""
        self._pulse.hear(workers, now_s=now_s)
        self._num_workers = len(workers)
        self._num_slots = sum(told.num_slots for told in workers.values())
        num_running = sum(told.num_running for told in workers.values())
        self._num_foreign.append(max(0, num_running - len(self._running) - len(self._waiting)))
        self._promote(now_s)

    def begin(self, name: str, max_tokens: int | None, *, now_s: float) -> None:
        """A row was sent."""
        self._known.append(max_tokens or DEFAULT_MAX_TOKENS)
        self._waiting[name] = _Row(self._known[-1])
        self._promote(now_s)

    def end(self, name: str, *, num_tokens: int, num_prompt_tokens: int, is_cut: bool, now_s: float) -> None:
        """A row was answered; `num_prompt_tokens` that had to be read."""
        if (row := self._running.pop(name, None)) is not None:
            self._lags.append(self._pulse.num_steps(now_s) - row.begun_steps - num_tokens)
            self._speeds.append(max(num_tokens, 1) / max(now_s - row.begun_s, 1e-3))
        self._waiting.pop(name, None)
        self._lengths.add(num_tokens, is_cut=is_cut)
        self._num_answers += 1
        self._prompt_tokens += num_prompt_tokens
        self._promote(now_s)

    def drop(self, name: str, *, now_s: float) -> None:
        """A row failed: nothing is learnt from it."""
        self._running.pop(name, None)
        self._waiting.pop(name, None)
        self._promote(now_s)

    def _promote(self, now_s: float) -> None:
        """Who came first gets the slot that is free."""
        while self._waiting and len(self._running) < self._num_own_slots:
            name = next(iter(self._waiting))
            row = self._running[name] = self._waiting.pop(name)
            row.begun_s, row.begun_steps = now_s, self._pulse.num_steps(now_s)

    @property
    def _num_own_slots(self) -> int:
        return max(min(1, self._num_slots), self._num_slots - min(self._num_foreign, default=0))

    # --- what will be ---

    def eta_s(self, num_unsent: int, *, now_s: float) -> float | None:
        """Seconds until the last row is answered; None while nothing is known. Computed at most once a second."""
        if self._eta_s is None or now_s - self._played_s >= PLAY_INTERVAL_S:
            self._played_s = now_s
            self._eta_s = self._computed(num_unsent, now_s)
        return None if self._eta_s is None else max(0.0, self._eta_s - (now_s - self._played_s))

    def _computed(self, num_unsent: int, now_s: float) -> float | None:
        law = self._law()
        if law is None or not self._num_slots or not self._num_answers:
            return None
        so_far = [self._tokens_of(row, now_s) for row in self._running.values()]
        survival, shares = self._lengths.survival(map(int, so_far)), _evenly()
        running = [
            _left(survival, row.max_tokens, done, next(shares))
            for row, done in zip(self._running.values(), so_far, strict=True)
        ]
        waiting = [_left(survival, row.max_tokens, 0.0, next(shares)) for row in self._waiting.values()]
        num_last = min(num_unsent, 2 * self._num_own_slots, MAX_PLAYED)
        last = self._unread(survival, num_last)
        place = _Place(
            law,
            num_slots=self._num_own_slots,
            num_workers=self._num_workers,
            num_foreign=min(self._num_foreign, default=0),
            begin_s=law.per_prompt_token_s * self._prompt_tokens / self._num_answers,
        )
        return place.flow_s(num_unsent - num_last, last) + place.play_s(running, [*waiting, *last])

    def _law(self) -> StepLaw | None:
        """As the workers tell; else the usual shares, at the speed that rows had."""
        if (law := self._pulse.law()) is not None or not self._speeds or not self._num_slots:
            return law
        num_rows = max(1, len(self._running)) / max(1, self._num_workers)
        scale = 1 / (median(self._speeds) * (USUAL[0] + num_rows))
        return StepLaw(USUAL[0] * scale, scale, 0.0)

    def _tokens_of(self, row: _Row, now_s: float) -> float:
        if self._pulse.is_known:
            lag = median(self._lags) if self._lags else 0.0
            return min(max(0.0, self._pulse.num_steps(now_s) - row.begun_steps - lag), row.max_tokens - 1)
        return min((now_s - row.begun_s) * median(self._speeds), row.max_tokens - 1)

    def _unread(self, survival: Survival, num_rows: int) -> list[float]:
        """Their lengths, of rows like those that were read."""
        shares, choose = _evenly(), random.Random(0)
        return [_left(survival, choose.choice(self._known), 0.0, next(shares)) for _ in range(num_rows)]


class _Place(NamedTuple):
    """Where rows run: workers of equal speed, with slots for rows, some taken by others' for good."""

    law: StepLaw
    num_slots: int
    num_workers: int
    num_foreign: int
    begin_s: float  # of one worker, to read a prompt

    def step_s(self, num_rows: float) -> float:
        return self.law.step_s(max(1.0, (num_rows + self.num_foreign) / self.num_workers))

    def flow_s(self, num_rows: int, like: Sequence[float]) -> float:
        """Of so many rows in the middle of a run, while all slots are taken; their lengths are like those."""
        if not num_rows:
            return 0.0
        return num_rows * (fmean(like) * self.step_s(self.num_slots) / self.num_slots + self.begin_s / self.num_workers)

    def play_s(self, running: Sequence[float], queued: Sequence[float]) -> float:
        """Until all have ended, from now on; given are the tokens that each has to go."""
        num_each = math.ceil((len(running) + len(queued)) / MAX_PLAYED) or 1  # rows that one stands for
        begin_s = self.begin_s * num_each / self.num_workers
        rows, num_slots = [*running[::num_each], *queued[::num_each]], math.ceil(self.num_slots / num_each)
        ends, queue = rows[:num_slots], rows[num_slots:]
        heapify(ends)
        queue.reverse()
        seconds = begin_s * max(0, len(ends) - len(running[::num_each]))
        steps = 0.0
        while ends:
            seconds += (ends[0] - steps) * self.step_s(len(ends) * num_each)
            steps = ends[0]
            if queue:
                heapreplace(ends, steps + queue.pop())
                seconds += begin_s
            else:
                heappop(ends)
        return seconds


def _left(survival: Survival, max_tokens: int, num_done: float, share: float) -> float:
    """Tokens to go of an answer: of all that are as long as it is, `share` get longer than what is taken for it."""
    length = survival.length_at(share * survival.share_beyond(num_done))
    return max(1.0, min(length, max_tokens) - num_done)


def _evenly() -> Iterator[float]:
    """Shares between 0 and 1, without an end."""
    return ((number * GOLDEN) % 1.0 for number in count(1))
