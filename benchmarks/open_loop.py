"""Requests that arrive when they are due, whatever the engine does; and what each of them saw. Knows no queue."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from tokenmill_worker.engine import Engine, SamplingParams
from tokenmill_worker.engine.api import EngineRequest, TokenEvent

from benchmarks.rivals.common import percentile


class Phase(NamedTuple):
    """So many requests a second, for so many seconds."""

    rate: float
    seconds: float


class Arrival(NamedTuple):
    """Due so many seconds after the start."""

    due_s: float
    prompt_token_ids: Sequence[int]
    max_tokens: int


@dataclass(slots=True)
class Answer:
    """When its tokens came: (time, number) of each event, by the run's clock."""

    due_s: float
    told: list[tuple[float, int]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(num for _, num in self.told)

    @property
    def per_token_s(self) -> float | None:
        """After the first event; None: there is no other."""
        rest = self.num_tokens - self.told[0][1]
        return (self.told[-1][0] - self.told[0][0]) / rest if rest else None


@dataclass(frozen=True, slots=True)
class Run:
    """`seconds` from the first arrival to the last token."""

    answers: list[Answer]
    seconds: float

    def figures(self) -> dict[str, float]:
        per_token = [value for one in self.answers if (value := one.per_token_s) is not None]
        gaps = [b[0] - a[0] for one in self.answers for a, b in pairwise(one.told)]
        first = [one.told[0][0] - one.due_s for one in self.answers]
        return {
            "tokens_per_s": round(sum(one.num_tokens for one in self.answers) / self.seconds, 1),
            "per_token_p50_ms": round(percentile(per_token, 50) * 1e3, 2),
            "per_token_p95_ms": round(percentile(per_token, 95) * 1e3, 2),
            "gap_p95_ms": round(percentile(gaps, 95) * 1e3, 2),
            "first_token_p50_ms": round(percentile(first, 50) * 1e3, 1),
            "first_token_p95_ms": round(percentile(first, 95) * 1e3, 1),
        }


def arrivals(
    phases: Sequence[Phase], prompts: Sequence[Sequence[int]], lengths: Sequence[int], *, seed: int
) -> list[Arrival]:
    """A Poisson process whose rate changes from phase to phase; prompts and lengths are taken in turn."""
    rng, found, start_s = random.Random(seed), list[Arrival](), 0.0
    for phase in phases:
        due_s = start_s + rng.expovariate(phase.rate)
        while due_s < start_s + phase.seconds:
            turn = len(found)
            found.append(Arrival(due_s, prompts[turn % len(prompts)], lengths[turn % len(lengths)]))
            due_s += rng.expovariate(phase.rate)
        start_s += phase.seconds
    return found


def drive(engine: Engine, work: Sequence[Arrival], *, clock: Callable[[], float], wait: Callable[[float], None]) -> Run:
    """Until the last answer is whole. `clock` is the engine's; `wait` lets seconds go by when nothing is to do."""
    started_s = clock()
    answers = [Answer(started_s + one.due_s) for one in work]
    num_due = 0
    while num_due < len(work) or engine.has_work():
        while num_due < len(work) and answers[num_due].due_s <= clock():
            engine.add_request(_request(num_due, work[num_due]))
            num_due += 1
        if engine.has_work():
            _note(engine.step(), answers, clock())
        else:
            wait(answers[num_due].due_s - clock())
    return Run(answers, clock() - answers[0].due_s)


def _request(number: int, arrival: Arrival) -> EngineRequest:
    params = SamplingParams(temperature=0.0, max_tokens=arrival.max_tokens, ignore_eos=True)
    return EngineRequest(request_id=str(number), prompt_token_ids=arrival.prompt_token_ids, params=params)


def _note(events: Sequence[TokenEvent], answers: Sequence[Answer], now_s: float) -> None:
    for event in events:
        if event.token_ids:
            answers[int(event.request_id)].told.append((now_s, len(event.token_ids)))
