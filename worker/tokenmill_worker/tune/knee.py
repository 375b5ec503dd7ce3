"""Where more rows stop giving throughput and only cost latency. Pure.

Source of the measure: Satopaa et al., "Finding a Kneedle in a Haystack", 2011: on axes from 0 to 1, the point farthest
above the straight line between the ends.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Seen(NamedTuple):
    """A point of the curve: rows, tokens a second, and the milliseconds that a token takes."""

    num_rows: int
    tokens_per_s: float
    token_ms: float


def knee(curve: Sequence[Seen]) -> Seen | None:
    """None for fewer than three points, which have no bend to speak of."""
    if len(curve) < 3:
        return None
    rates, times = [one.tokens_per_s for one in curve], [one.token_ms for one in curve]

    def gain(one: Seen) -> float:
        return _share(one.tokens_per_s, rates) - _share(one.token_ms, times)

    return max(curve, key=gain)


def _share(value: float, values: Sequence[float]) -> float:
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.0


def is_flat(rates: Sequence[float], *, rise: float = 1.03, num: int = 2) -> bool:
    """Did the last `num` points of a rising sweep bring next to nothing beyond the best before them?"""
    return len(rates) > num and max(rates[-num:]) < rise * max(rates[:-num])
