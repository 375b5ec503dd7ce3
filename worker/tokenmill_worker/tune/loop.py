"""Loads on one live engine, measured: its limits change as it runs, so a new point starts with a full batch.

Closed loop: as many clients as rows, each asks again when it has its answer. Open loop: requests come by a Poisson
process, whatever becomes of those before. Static: a batch starts when the one before is done with its longest answer.
Knows no policy of what to measure.
"""

import itertools
import random
import time
from collections.abc import Callable

from tokenmill_worker.engine.api import EngineRequest, SamplingParams
from tokenmill_worker.engine.engine import Engine
from tokenmill_worker.tune.figures import Figures
from tokenmill_worker.tune.space import USUAL_TOKENS, Point
from tokenmill_worker.tune.window import Flight, Step, Window
from tokenmill_worker.tune.workload import Ask, Workload

FEWEST_STEPS = 8  # of a window
SETTLING_STEPS = 2
LEAST_SHARE = 0.4  # of a measurement's time that goes to the window, however long the batch took to fill
CANDIDATES = 8  # answers among which one that is under way is chosen, the likelier the longer it is
STATIC_SCALE = 0.25  # of static batches' prompts and answers: the same shape in a quarter of the time


class OutOfTimeError(Exception):
    """The deadline passed before the load could be measured."""


class Loop:
    """`now` and `wait`: the clock that the engine's runner lives by. By `deadline_s` on it, every measurement ends."""

    def __init__(
        self,
        engine: Engine,
        workload: Workload,
        *,
        deadline_s: float = float("inf"),
        now: Callable[[], float] = time.perf_counter,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.engine = engine
        self.deadline_s = deadline_s
        self.workload = workload
        self._now, self._wait = now, wait
        self._asks = workload.asks()
        self._rng = random.Random(workload.seed)
        self._flights: dict[str, Flight] = {}
        self._numbers = itertools.count()
        self.steps: list[Step] = []  # of all closed loops so far
        self.mean_prompt, self.mean_output = workload.means()
        self._prefill_per_output = self.mean_prompt / self.mean_output

    # The three loads

    def closed(self, point: Point, seconds: float) -> Figures:
        """`seconds` with the filling of the batch. Raises OutOfTimeError where it is not full by the deadline."""
        started_s = self._now()
        self._fill(point, min(point.max_num_seqs, point.max_num_batched_tokens))
        window = Window()
        end_s = max(started_s + seconds, self._now() + LEAST_SHARE * seconds)
        while not self._is_over(window, point, end_s):
            for _ in range(self._step(window)):
                self._add(next(self._asks), due_s=self._now())
        num_waiting = self.engine.statistics().num_waiting
        self.steps += window.steps
        return window.figures(window.balanced_seconds(self._prefill_per_output), num_waiting=num_waiting)

    def open(self, point: Point, rate: float, seconds: float, *, num_under_way: int = 0) -> Figures:
        """`rate` requests a second. `num_under_way`: as many are there already, as if it had run for long."""
        self._fill(point, min(num_under_way, point.max_num_seqs))
        window, started_s = Window(), self._now()
        due_s = started_s + self._rng.expovariate(rate)
        while (now_s := self._now()) < min(started_s + seconds, self.deadline_s):
            while due_s <= now_s:
                self._add(next(self._asks), due_s=due_s)
                due_s += self._rng.expovariate(rate)
            if self.engine.has_work():
                self._step(window)
            else:
                self._wait(min(due_s, started_s + seconds) - now_s)
        num_waiting = self.engine.statistics().num_waiting
        return window.figures(self._now() - started_s, num_waiting=num_waiting)

    def static(self, point: Point, seconds: float) -> Figures:
        """Batches of `max_num_seqs`: all rows run until the longest answer is done, and only then others join."""
        self.clear()
        self._reconfigure(point)
        asks = self.workload.asks(seed=1)
        window, started_s, num_useful = Window(), self._now(), 0
        while not window.steps or self._now() - started_s < seconds:
            batch = [_scaled(next(asks)) for _ in range(point.max_num_seqs)]
            longest = max(ask.num_output_tokens for ask in batch)
            for ask in batch:
                self._add(Ask(ask.prompt_token_ids, longest), due_s=self._now())
            num_useful += sum(ask.num_output_tokens for ask in batch)
            while self.engine.has_work():
                self._check_deadline()
                self._step(window)
        return window.figures(self._now() - started_s, num_waiting=0, num_tokens=num_useful)

    def clear(self) -> None:
        """Nothing is under way any more."""
        for request_id in list(self._flights):
            self._drop(request_id)

    # Filling the batch

    def _fill(self, point: Point, num_clients: int) -> None:
        """So many rows, all of them past their prompt and none as far as the next, as in the midst of a long run."""
        while len(self._flights) > num_clients:
            self._drop(next(reversed(self._flights)))
        self._drop_waiting(point)
        tokens = max(point.max_num_batched_tokens, USUAL_TOKENS)
        self._reconfigure(Point(point.max_num_seqs, tokens, 1, point.num_threads))
        while len(self._flights) < num_clients:
            self._add(self._under_way(), due_s=self._now(), is_newcomer=False)
        joining = [flight for flight in self._flights.values() if flight.last_s is None]
        while any(flight.last_s is None for flight in joining):
            self._check_deadline()
            for _ in range(self._step(None)):
                self._add(self._under_way(), due_s=self._now(), is_newcomer=False)
        self._reconfigure(point)
        for _ in range(SETTLING_STEPS):
            for _ in range(self._step(None)):
                self._add(next(self._asks), due_s=self._now())
        self._check_deadline()

    def _drop_waiting(self, point: Point) -> None:
        """Those that an earlier load left over."""
        for request_id, flight in list(self._flights.items()):
            if flight.last_s is None:
                self._drop(request_id)

    def _under_way(self) -> Ask:
        """What is left of an answer that is met at a random moment: a long one is met more often than a short one."""
        asks = [next(self._asks) for _ in range(CANDIDATES)]
        [ask] = self._rng.choices(asks, [ask.num_output_tokens for ask in asks])
        return Ask(ask.prompt_token_ids, self._rng.randint(1, ask.num_output_tokens))

    def _reconfigure(self, point: Point) -> None:
        self.engine.reconfigure(
            max_num_seqs=point.max_num_seqs,
            max_num_batched_tokens=point.max_num_batched_tokens,
            scheduling_interval=point.scheduling_interval,
            num_threads=point.num_threads,
        )

    # Requests and steps

    def _add(self, ask: Ask, *, due_s: float, is_newcomer: bool = True) -> None:
        request_id = f"tune-{next(self._numbers)}"
        params = SamplingParams(temperature=0.0, max_tokens=ask.num_output_tokens, ignore_eos=True)
        self.engine.add_request(
            EngineRequest(request_id=request_id, prompt_token_ids=ask.prompt_token_ids, params=params)
        )
        self._flights[request_id] = Flight(due_s, is_newcomer=is_newcomer)

    def _drop(self, request_id: str) -> None:
        self.engine.drop(request_id)
        del self._flights[request_id]

    def _step(self, window: Window | None) -> int:
        """The number of requests that it ended."""
        before, started_s = self.engine.statistics(), self._now()
        events = self.engine.step()
        now_s, after = self._now(), self.engine.statistics()
        if window is not None:
            num_prefill = after.num_prefill_tokens - before.num_prefill_tokens
            num_decode = after.num_decode_tokens - before.num_decode_tokens
            window.steps.append(Step(now_s - started_s, num_prefill, num_decode))
        num_ended = 0
        for event in events:
            if event.token_ids:
                self._flights[event.request_id].tell(now_s, len(event.token_ids), window)
            if event.usage is not None:
                del self._flights[event.request_id]
                num_ended += 1
        return num_ended

    def _is_over(self, window: Window, point: Point, end_s: float) -> bool:
        """After whole intervals only: half of one would have the newcomers and not the steps without them."""
        now_s, num_steps = self._now(), len(window.steps)
        if now_s >= self.deadline_s and window.gaps_s:
            return True
        enough = max(FEWEST_STEPS, 2 * point.scheduling_interval)
        return now_s >= end_s and num_steps >= enough and num_steps % point.scheduling_interval == 0

    def _check_deadline(self) -> None:
        if self._now() >= self.deadline_s:
            raise OutOfTimeError


def _scaled(ask: Ask) -> Ask:
    num_prompt = max(1, round(len(ask.prompt_token_ids) * STATIC_SCALE))
    return Ask(ask.prompt_token_ids[:num_prompt], max(1, round(ask.num_output_tokens * STATIC_SCALE)))
