"""What was seen of one point, and which of two points is better. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median

UNKNOWN = 1.01  # times a limit: not held, but the nearest to it that can be


@dataclass(frozen=True, slots=True)
class Figures:
    """Rates and times of one setting under one load.

    `token_*`: the time of each token after an answer's first one (what stutters, shows here). `tpot_*`: the mean of
    those times over an answer, percentiles over answers. `ttft_*`: from a request's arrival to its first token.
    `num_rows`: mean number that decoded in a step. `num_waiting`: requests without a row at the end.
    """

    tokens_per_s: float
    token_p50_ms: float
    token_p99_ms: float
    tpot_p50_ms: float
    tpot_p95_ms: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    num_rows: float
    num_waiting: int
    num_steps: int
    seconds: float

    @property
    def delay(self) -> float:
        """What a reader waits, for comparisons: the first token's time by the others', halving either counts the same.

        Where nobody came, a first token took as long as any.
        """
        return max(self.ttft_p95_ms, self.tpot_p50_ms) * self.tpot_p50_ms

    def plain(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in asdict(self).items()}

    @classmethod
    def typical(cls, several: Sequence["Figures"]) -> "Figures":
        """Field by field the median, so that one disturbed window changes nothing; what was done adds up."""
        values = {field.name: median(getattr(one, field.name) for one in several) for field in fields(cls)}
        values["num_steps"] = sum(one.num_steps for one in several)
        values["seconds"] = sum(one.seconds for one in several)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Targets:
    """Most time to the first token, and of a token after it (TPOT), each at its 95th percentile. None: any."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    def __bool__(self) -> bool:
        return self.ttft_ms is not None or self.tpot_ms is not None

    def excess(self, figures: Figures) -> float:
        """How many times the worse of the two limits is exceeded; 1 and less: both are kept.

        Where nobody came, nobody knows how long a first token takes: that is no success.
        """
        ttft = figures.ttft_p95_ms / self.ttft_ms if self.ttft_ms else 0.0
        unknown = UNKNOWN if self.ttft_ms and not figures.ttft_p95_ms else 0.0
        return max(ttft, unknown, figures.tpot_p95_ms / self.tpot_ms if self.tpot_ms else 0.0)

    def are_held(self, figures: Figures) -> bool:
        return self.excess(figures) <= 1

    def merit(self, figures: Figures) -> float:
        """Throughput; beyond a limit it falls steeply, not at once: a near miss may be noise and worth another look."""
        return float(figures.tokens_per_s / max(1.0, self.excess(figures)) ** 4)


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the two nearest values, by their distance; 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
