"""How long a step takes, learnt from steps that were timed. Pure arithmetic: knows no clock, no runner, no scheduler.

The time is a sum: a monotone piecewise linear function of the tokens in the row (products read all weights once, then
compute more the more tokens there are), and shares that grow with the rows that draw, with what decoding rows attend to
(memory) and with the pairs of tokens in prefill chunks (arithmetic). All shares are fitted at once, none negative.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np

from tokenmill_worker.engine.batch import Bools, Floats

KNOTS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # where the curve may bend; then by doubling
ROUNDS = 6  # of reweighting: outliers of a busy machine lose their weight
OUTLIER = 0.1  # relative error from which a measurement counts less
FORGETTING = 0.05  # of the online corrections: half of what they know is of the last 14 steps
SURPRISE = 0.5  # largest log ratio that one step may teach: a pause of the machine is no law


class StepShape(NamedTuple):
    """What a step's time depends on.

    `num_tokens` in the row, `num_samples` rows that draw, `num_context` stored tokens over all decoding rows,
    `num_pairs` of a token in a prefill chunk and a token that it attends to.
    """

    num_tokens: int
    num_samples: int
    num_context: int
    num_pairs: int


@dataclass(frozen=True, slots=True)
class CostCurve:
    """A fit. `heights[i]` seconds at `knots[i]` tokens; the other shares are seconds for one of each."""

    knots: tuple[int, ...]
    heights: tuple[float, ...]
    per_sample: float
    per_context: float
    per_pair: float

    def predict(self, shape: StepShape) -> float:
        """Seconds."""
        return (
            self._of_tokens(shape.num_tokens)
            + self.per_sample * shape.num_samples
            + self.per_context * shape.num_context
            + self.per_pair * shape.num_pairs
        )

    def _of_tokens(self, num_tokens: int) -> float:
        """Beyond the last knot it goes on as between the last two."""
        knots, heights = self.knots, self.heights
        if len(knots) == 1:
            return heights[0]
        right = min(max(bisect_right(knots, num_tokens), 1), len(knots) - 1)
        share = (num_tokens - knots[right - 1]) / (knots[right] - knots[right - 1])
        return heights[right - 1] + share * (heights[right] - heights[right - 1])

    def to_dict(self) -> dict[str, object]:
        return {
            "knots": list(self.knots),
            "heights": list(self.heights),
            "per_sample": self.per_sample,
            "per_context": self.per_context,
            "per_pair": self.per_pair,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Raises ValueError, TypeError or KeyError for what `to_dict` did not write."""
        knots = tuple(map(int, values["knots"]))  # type: ignore[call-overload]  # what is no list raises, as promised
        heights = tuple(map(float, values["heights"]))  # type: ignore[call-overload]  # as above
        shares = [float(values[name]) for name in ("per_sample", "per_context", "per_pair")]  # type: ignore[arg-type]  # as above
        numbers = (*heights, *shares)
        if len(knots) != len(heights) or not knots or any(a >= b for a, b in pairwise(knots)):
            raise ValueError("the knots of a cost curve must rise, with a height each")
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError("a cost curve has no negative share")
        return cls(knots, heights, *shares)


def fit(shapes: Sequence[StepShape], seconds: Sequence[float]) -> CostCurve:
    """The curve with the least relative errors, of which large ones count less. Raises ValueError for no steps."""
    if not shapes:
        raise ValueError("a cost curve needs at least one timed step")
    knots = _knots([shape.num_tokens for shape in shapes])
    features = np.column_stack([_ramps(knots, [shape.num_tokens for shape in shapes]), [shape[1:] for shape in shapes]])
    shares = _robust_shares(features, np.asarray(seconds, dtype=np.float64))
    heights = np.cumsum(shares[: len(knots)]).tolist()
    return CostCurve(knots, tuple(heights), *shares[len(knots) :].tolist())


def _knots(num_tokens: Sequence[int]) -> tuple[int, ...]:
    """Fixed places to bend at, such that a measurement lies in every piece; first and last are measured ones."""
    first, last = min(num_tokens), max(num_tokens)
    return tuple(sorted({first, *(min(_rounded_up(size), last) for size in num_tokens if size > first)}))


def _rounded_up(num_tokens: int) -> int:
    where = bisect_left(KNOTS, num_tokens)
    return KNOTS[where] if where < len(KNOTS) else 1 << (num_tokens - 1).bit_length()


def _ramps(knots: Sequence[int], num_tokens: Sequence[int]) -> Floats:
    """[N, K]: a constant, and how much of each piece lies below: no share < 0 makes their sum monotone."""
    sizes = np.asarray(num_tokens, dtype=np.float64)[:, None]
    starts, ends = np.array(knots[:-1], dtype=np.float64), np.array(knots[1:], dtype=np.float64)
    return np.column_stack([np.ones(len(sizes)), np.clip((sizes - starts) / (ends - starts), 0.0, 1.0)])


def _robust_shares(features: Floats, seconds: Floats) -> Floats:
    """Iteratively reweighted: Huber's weights on relative errors."""
    relative = features / seconds[:, None]
    weights = np.ones(len(seconds))
    shares = np.zeros(features.shape[1])
    for _ in range(ROUNDS):
        shares = _nonnegative(relative * weights[:, None], weights)
        errors = np.abs(relative @ shares - 1.0)
        weights = np.sqrt(np.minimum(1.0, OUTLIER / np.maximum(errors, OUTLIER)))
    return shares


def _nonnegative(a: Floats, b: Floats) -> Floats:
    """min |a x - b| over x >= 0, by the active sets of Lawson and Hanson (Solving Least Squares Problems, 1974)."""
    scale = np.maximum(np.linalg.norm(a, axis=0), 1e-300)
    a = a / scale
    x, is_free = np.zeros(a.shape[1]), np.zeros(a.shape[1], dtype=np.bool_)
    for _ in range(3 * len(x)):
        slope = np.where(is_free, -np.inf, a.T @ (b - a @ x))
        if slope.max() <= 1e-10 * len(b):
            break
        is_free[slope.argmax()] = True
        x = _descend(a, b, x, is_free)
    result: Floats = x / scale
    return result


def _descend(a: Floats, b: Floats, x: Floats, is_free: Bools) -> Floats:
    """To the least squares over the free ones; those that would go below zero are bound on the way."""
    while is_free.any():
        best = np.zeros(len(x))
        best[is_free] = np.linalg.lstsq(a[:, is_free], b, rcond=None)[0]
        is_low = is_free & (best <= 0.0)
        if not is_low.any():
            return best
        x = x + (x[is_low] / np.maximum(x[is_low] - best[is_low], 1e-300)).min() * (best - x)
        is_free &= x > 1e-15
        x[~is_free] = 0.0
    return np.zeros(len(x))


class CostModel:
    """A fitted curve, kept honest by the steps that run: corrections that forget, all in a few operations a step."""

    def __init__(self, curve: CostCurve) -> None:
        self.curve = curve
        self._level = 0.0  # logarithm of the factor for all steps ...
        self._local = [0.0] * len(curve.knots)  # ... and of that around each knot

    def predict(self, shape: StepShape) -> float:
        """Seconds."""
        return self.curve.predict(shape) * math.exp(self._level + self._local[self._nearest(shape.num_tokens)])

    def observe(self, shape: StepShape, seconds: float) -> None:
        """A step of this shape took so long."""
        if not shape.num_tokens or seconds <= 0.0:
            return
        knot = self._nearest(shape.num_tokens)
        surprise = math.log(seconds / max(self.curve.predict(shape), 1e-9)) - self._level - self._local[knot]
        surprise = min(SURPRISE, max(-SURPRISE, surprise))
        self._level += FORGETTING * surprise
        self._local[knot] += FORGETTING * surprise

    def _nearest(self, num_tokens: int) -> int:
        """The piece that it lies in."""
        return min(bisect_right(self.curve.knots, num_tokens), len(self.curve.knots)) - 1 if num_tokens else 0
