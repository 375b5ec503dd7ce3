"""How much of the batch a step may run so that its time keeps to the targets. Pure: knows no clock and no scheduler.

A decoding row gets one token a step, so its time per token is the time of a step: rows and prompt tokens share what the
target allows. Decoding rows come first; newcomers are let in while one more row would still keep the target, and their
prompts get what each step has left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tokenmill_worker.engine.cost_model import CostModel, StepShape

TOLERANCE = 1.1  # a step that takes longer than this much of the target is late; one in twenty may be
LATE_SHARE = 0.05
CAUTION = 0.02  # how fast too many late steps lower what is aimed at, and none raise it again
LEAST_AIM = 0.5  # of the target: below it the machine is not itself, and fewer tokens would not help
URGENCY = 1.2  # a step may take so much of the target while somebody's first token is about to be late
LEAST_STEPS = 1.5  # a target is not taken below so many steps of a single row: nothing could run beside it
SMOOTHING = 0.1  # of what is shown, and of the time between steps


@dataclass(frozen=True, slots=True)
class Targets:
    """Seconds. `tpot_s` per token; `ttft_s` to the first one, None: no target."""

    tpot_s: float
    ttft_s: float | None = None


class Load(NamedTuple):
    """What runs and waits before a step.

    `num_context` stored tokens of the decoding rows, `prefill_start` of the first row that prefills or comes next,
    `num_growth` tokens by which a row is expected to grow yet, `oldest_s` since the oldest request without a first
    token arrived (0: there is none).
    """

    num_decoding: int
    num_context: int
    prefill_start: int = 0
    num_growth: int = 0
    oldest_s: float = 0.0


class Limits(NamedTuple):
    """Of one step: `num_tokens` in the row, decoding ones included, and `num_rows` that may run."""

    num_tokens: int
    num_rows: int


class Pacer:
    """Chooses limits from the load, and learns from every step that ran."""

    def __init__(self, model: CostModel, targets: Targets) -> None:
        self._model = model
        self._targets = targets
        self._mean_context = 0.0  # of a decoding row, as last seen
        self._between_s = 0.0  # from the end of a step to the start of the next
        self._aim = 1.0  # share of the target
        self._is_hurried = False  # the last step
        self.limits: Limits | None = None  # of the last step

    # The decision

    def choose(self, load: Load, most: Limits) -> Limits:
        """`most`: what is set. Every decoding row takes part, whatever the target; without any, nobody waits."""
        if load.num_decoding:
            self._mean_context = load.num_context / load.num_decoding
        step_s = self._step_s(load)
        self.limits = Limits(self._num_tokens(load, step_s, most), self._num_rows(load, step_s, most))
        return self.limits

    def _step_s(self, load: Load) -> float:
        """What a step may take."""
        self._is_hurried = self._is_urgent(load)
        tpot_s = self._targets.tpot_s * (URGENCY if self._is_hurried else self._aim)
        single_s = self._model.predict(StepShape(1, 1, int(self._mean_context) + 1, 0))
        return max(tpot_s - self._between_s, LEAST_STEPS * single_s)

    def _is_urgent(self, load: Load) -> bool:
        """Is a first token about to be late? What is far too late already is not hurried at others' cost."""
        ttft_s = self._targets.ttft_s
        return ttft_s is not None and 0.5 * ttft_s <= load.oldest_s <= 2.0 * ttft_s

    def _num_tokens(self, load: Load, step_s: float, most: Limits) -> int:
        if not load.num_decoding:
            return most.num_tokens

        def seconds(num_tokens: int) -> float:
            num_new = num_tokens - load.num_decoding
            pairs = num_new * load.prefill_start + num_new * num_new // 2
            return self._model.predict(
                StepShape(num_tokens, load.num_decoding + min(1, num_new), load.num_context, pairs)
            )

        return _largest(seconds, load.num_decoding, most.num_tokens, step_s)

    def _num_rows(self, load: Load, step_s: float, most: Limits) -> int:
        """As many as can decode side by side, grown by half of what they will."""
        context = self._mean_context + load.num_growth / 2

        def seconds(num_rows: int) -> float:
            return self._model.predict(StepShape(num_rows, num_rows, int(num_rows * context), 0))

        return _largest(seconds, 1, most.num_rows, step_s)

    # What is learnt

    def predict(self, shape: StepShape) -> float:
        """Seconds."""
        return self._model.predict(shape)

    def observe(self, shape: StepShape, num_decoding: int, step_s: float, between_s: float) -> None:
        """A step ran for `step_s`, `between_s` after the one before."""
        self._model.observe(shape, step_s)
        self._between_s += SMOOTHING * (min(between_s, step_s) - self._between_s)
        if self._is_hurried or not num_decoding:
            return
        if step_s + between_s > TOLERANCE * self._targets.tpot_s:
            self._aim = max(LEAST_AIM, self._aim * (1.0 - CAUTION * (1.0 - LATE_SHARE)))
        else:
            self._aim = min(1.0, self._aim * (1.0 + CAUTION * LATE_SHARE))


def _largest(seconds: Callable[[int], float], least: int, most: int, limit_s: float) -> int:
    """The largest number that takes no longer than `limit_s`, but never less than `least`. `seconds` is monotone."""
    least = min(least, most)
    if seconds(most) <= limit_s:
        return most
    while most - least > 1:
        middle = (least + most) // 2
        if seconds(middle) <= limit_s:
            least = middle
        else:
            most = middle
    return least
