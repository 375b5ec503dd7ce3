"""Poisson arrivals served three ways: static, dynamic and continuous batching, on one engine.

static: a batch of `max_num_seqs` begins when so many wait, and all its rows run until the longest answer is done.
dynamic: a batch of whoever waits begins as soon as the one before is done; answers leave when they end, nobody joins.
continuous: whoever waits takes a row as soon as one is free.
"""

from collections import deque
from typing import Literal

from tokenmill_worker.tune.figures import Figures
from tokenmill_worker.tune.loop import Loop
from tokenmill_worker.tune.space import Point
from tokenmill_worker.tune.window import Window
from tokenmill_worker.tune.workload import Ask

Way = Literal["static", "dynamic", "continuous"]
WAYS: tuple[Way, ...] = ("static", "dynamic", "continuous")
Due = tuple[Ask, float]


class ArrivalLoop(Loop):
    """`served` begins with nothing under way and ends when all that came was answered."""

    def served(self, way: Way, point: Point, rate: float, seconds: float) -> Figures:
        self.clear()
        self._reconfigure(point)
        started_s, window = self._now(), Window()
        to_come = self._arrivals(rate, seconds, started_s)
        num_useful = sum(ask.num_output_tokens for ask, _ in to_come)
        waiting: deque[Due] = deque()
        while to_come or waiting or self.engine.has_work():
            while to_come and to_come[0][1] <= self._now():
                waiting.append(to_come.popleft())
            self._let_in(way, waiting, point.max_num_seqs, is_last=not to_come)
            if self.engine.has_work():
                self._step(window)
            elif to_come:
                self._wait(max(0.0, to_come[0][1] - self._now()))
        return window.figures(self._now() - started_s, num_waiting=0, num_tokens=num_useful)

    def _arrivals(self, rate: float, seconds: float, started_s: float) -> deque[Due]:
        """The same requests at the same times for every way."""
        asks, due_s, found = self.workload.asks(seed=2), started_s, deque[Due]()
        self._rng.seed(2)
        while (due_s := due_s + self._rng.expovariate(rate)) < started_s + seconds:
            found.append((next(asks), due_s))
        return found

    def _let_in(self, way: Way, waiting: deque[Due], num_rows: int, *, is_last: bool) -> None:
        if way == "continuous":
            self._start(waiting, len(waiting))
        elif self.engine.has_work():
            return
        elif way == "dynamic":
            self._start(waiting, num_rows)
        elif len(waiting) >= num_rows or is_last:
            longest = max((ask.num_output_tokens for ask, _ in list(waiting)[:num_rows]), default=0)
            self._start(waiting, num_rows, num_output_tokens=longest)

    def _start(self, waiting: deque[Due], num: int, *, num_output_tokens: int | None = None) -> None:
        for _ in range(min(num, len(waiting))):
            ask, due_s = waiting.popleft()
            self._add(Ask(ask.prompt_token_ids, num_output_tokens or ask.num_output_tokens), due_s=due_s)
