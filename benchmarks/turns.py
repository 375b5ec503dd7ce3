"""Queues measured in turn, A B, B A, A B ...: the machine's drift falls on all of them alike. Knows no queue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from benchmarks.rivals.common import percentile

Figures = Mapping[str, float]
PERCENTS = (50, 95, 99)


class Contender(Protocol):
    """Its worker runs from the start, and is stopped (SIGSTOP) while others are measured."""

    name: str

    def round_trips(self, num: int) -> Sequence[float]:
        """Milliseconds of each, one request at a time on an idle queue; after a warm-up."""
        ...

    def end_to_end(self, num: int) -> Figures:
        """`end_to_end_per_s`, from the first request's submission to the last one's result; after a warm-up."""
        ...


@dataclass(frozen=True, slots=True)
class Measured:
    """One contender's figures, a round each."""

    name: str
    rounds: list[dict[str, float]]

    def medians(self) -> dict[str, float]:
        return {name: median(self.column(name)) for name in self.rounds[0]}

    def column(self, name: str) -> list[float]:
        return [figures[name] for figures in self.rounds]


def in_turn(
    contenders: Sequence[Contender], *, num_rounds: int, num_requests: int, num_round_trips: int
) -> list[Measured]:
    """The same number of requests for everybody, all in one run on one server."""
    measured = {contender.name: Measured(contender.name, []) for contender in contenders}
    for number in range(num_rounds):
        order = contenders[:: 1 if number % 2 == 0 else -1]
        figures: dict[str, dict[str, float]] = {contender.name: {} for contender in order}
        for contender in order:
            figures[contender.name] |= _trip_figures(contender.round_trips(num_round_trips))
        for contender in order:
            figures[contender.name] |= contender.end_to_end(num_requests)
        for contender in contenders:
            measured[contender.name].rounds.append(figures[contender.name])
            _tell(number, contender.name, figures[contender.name])
    return list(measured.values())


def _trip_figures(times_ms: Sequence[float]) -> dict[str, float]:
    return {f"round_trip_p{percent}_ms": percentile(times_ms, percent) for percent in PERCENTS}


def _tell(number: int, name: str, figures: Figures) -> None:
    trip_ms, per_s = figures["round_trip_p50_ms"], figures["end_to_end_per_s"]
    print(f"  round {number + 1}  {name:<12}{trip_ms:>8.2f} ms round trip {per_s:>10,.0f}/s end to end", flush=True)


def paired_ratios(ours: Measured, theirs: Measured) -> dict[str, float]:
    """Ours over theirs, the median over the rounds' own ratios; above 1 is better for rates, below 1 for times."""
    return {
        name: round(median(map(_over, ours.column(name), theirs.column(name))), 3)
        for name in ("end_to_end_per_s", "round_trip_p50_ms")
    }


def _over(ours: float, theirs: float) -> float:
    return ours / theirs
