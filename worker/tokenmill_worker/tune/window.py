"""What happened during one stretch of steps. Pure; knows no engine and no clock."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from tokenmill_worker.tune.figures import Figures, percentile

FEW_TOKENS = 8  # of an answer inside a window: with fewer, its mean time per token says little


class Step(NamedTuple):
    """How long it took, and what it computed."""

    seconds: float
    num_prefill_tokens: int
    num_decode_tokens: int


class Flight:
    """One request on its way: when it was due, and when it last told tokens."""

    def __init__(self, due_s: float, *, is_newcomer: bool) -> None:
        self.due_s = due_s
        self.is_newcomer = is_newcomer  # False: it stands in for one that began long ago
        self.last_s: float | None = None

    def tell(self, now_s: float, num_tokens: int, window: "Window | None") -> None:
        if window is not None and self.last_s is not None:
            window.add_gap(self, (now_s - self.last_s) / num_tokens, num_tokens)
        elif window is not None and self.is_newcomer:
            window.first_s.append(now_s - self.due_s)
        self.last_s = now_s
        if window is not None:
            window.num_output_tokens += num_tokens


class Window:
    """Collects; `figures` tells."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.gaps_s: list[float] = []
        self.first_s: list[float] = []
        self.num_output_tokens = 0
        self._answers: dict[Flight, list[float]] = {}

    def add_gap(self, flight: Flight, gap_s: float, num_tokens: int) -> None:
        gaps = [gap_s] * num_tokens
        self.gaps_s += gaps
        self._answers.setdefault(flight, []).extend(gaps)

    def figures(self, seconds: float, *, num_waiting: int, num_tokens: int | None = None) -> Figures:
        """`seconds` that the window counts for; `num_tokens`: those that were of use, if not all."""
        own = [gaps for gaps in self._answers.values() if len(gaps) >= FEW_TOKENS] or list(self._answers.values())
        per_answer = [sum(gaps) / len(gaps) for gaps in own]
        tokens = self.num_output_tokens if num_tokens is None else num_tokens
        num_steps = len(self.steps)
        return Figures(
            tokens_per_s=tokens / seconds if seconds else 0.0,
            token_p50_ms=1e3 * percentile(self.gaps_s, 50),
            token_p99_ms=1e3 * percentile(self.gaps_s, 99),
            tpot_p50_ms=1e3 * percentile(per_answer, 50),
            tpot_p95_ms=1e3 * percentile(per_answer, 95),
            ttft_p50_ms=1e3 * percentile(self.first_s, 50),
            ttft_p95_ms=1e3 * percentile(self.first_s, 95),
            num_rows=sum(step.num_decode_tokens for step in self.steps) / max(1, num_steps),
            num_waiting=num_waiting,
            num_steps=num_steps,
            seconds=sum(step.seconds for step in self.steps),
        )

    def balanced_seconds(self, prefill_per_output: float) -> float:
        """As long as it takes on an undisturbed machine, with as many newcomers as the workload has on average.

        In a short window, how many answers happen to end decides how much is prefilled, more than any setting does; and
        a neighbour that takes the processor for a moment decides the rest. So a step counts with the median of what the
        steps took without their prompts, and prompts with what a token of them costs, read off the same steps.
        """
        cost_s = cost_of_prefill(self.steps)
        bare_s = median(step.seconds - cost_s * step.num_prefill_tokens for step in self.steps)
        return len(self.steps) * max(bare_s, 0.0) + cost_s * prefill_per_output * self.num_output_tokens


def cost_of_prefill(steps: Sequence[Step]) -> float:
    """Seconds that one more prefilled token adds to a step: the median over steps, 0 where nothing tells.

    Against the steps without any, or, where every step has some, against the one that has fewest.
    """
    fewest = min(step.num_prefill_tokens for step in steps)
    plain_s = median(step.seconds for step in steps if step.num_prefill_tokens == fewest)
    costs = [
        (step.seconds - plain_s) / (step.num_prefill_tokens - fewest)
        for step in steps
        if step.num_prefill_tokens > fewest
    ]
    return max(0.0, median(costs)) if costs else 0.0
