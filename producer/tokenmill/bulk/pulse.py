"""What a fleet's steps cost and how many it has made, from what its workers tell of themselves. Pure.

A step takes a fixed time, and more for each row and each prompt token in it. The three shares are fitted to the totals
that each worker tells once a second: least squares on the totals and not on their growth, because what is told falls
somewhere into a step, and that error would be in every second anew. What the totals do not tell apart (a batch that
never changes its size) is left as it is on most machines: each share is pulled gently towards USUAL.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import NamedTuple

MAX_MARKS = 60  # of a worker: a minute, which follows a machine that grows slower, and still sees a batch empty
MIN_STEPS = 5
NUM_LATE = 6  # marks
USUAL = (20.0, 1.0, 0.75)  # a step, a row in it, a prompt token in it: SmolLM2 on two cores, times of a row's
MAX_AHEAD_S = 3.0  # a worker that says nothing for longer may stand still


Steps = tuple[tuple[float, float], ...]  # rows, and the seconds of a step of so many; by ascending rows


class WorkerTold(NamedTuple):
    """A worker's word about itself. Totals since its start, `told_s` by its own clock; 0.0: it tells none."""

    num_slots: int
    told_s: float = 0.0
    num_steps: int = 0
    num_decode_tokens: int = 0
    num_prefill_tokens: int = 0
    num_running: int = 0
    decode_steps: Steps = ()


class StepLaw(NamedTuple):
    """Seconds. `seen`: what steps without a prompt took; the shares tell what nobody has seen."""

    fixed_s: float
    per_row_s: float
    per_prompt_token_s: float
    seen: Steps = ()

    def step_s(self, num_rows: float) -> float:
        """Between two that were seen on the line that joins them; beyond, in proportion to the nearest."""
        before = [one for one in self.seen if one[0] <= num_rows]
        after = [one for one in self.seen if one[0] > num_rows]
        if before and after:
            (low, low_s), (high, high_s) = before[-1], after[0]
            return low_s + (high_s - low_s) * (num_rows - low) / (high - low)
        scale = 1.0
        if nearest := before[-1:] or after[:1]:
            [(rows, seconds)] = nearest
            scale = seconds / self._by_shares(rows)
        return scale * self._by_shares(num_rows)

    def _by_shares(self, num_rows: float) -> float:
        return self.fixed_s + self.per_row_s * num_rows


class Pulse:
    """Is told of the workers now and then."""

    def __init__(self) -> None:
        self._marks: dict[str, deque[WorkerTold]] = {}
        self._num_steps = self._heard_s = self._steps_per_s = 0.0

    def hear(self, workers: Mapping[str, WorkerTold], *, now_s: float) -> None:
        """All that are alive."""
        self._marks = {name: self._marks.get(name, deque(maxlen=MAX_MARKS)) for name in workers}
        grown = [_note(self._marks[name], told) for name, told in workers.items()]
        if any(grown):
            self._num_steps += fmean(grown)
            self._heard_s = now_s
            self._steps_per_s = fmean(map(_speed, self._marks.values()))

    def num_steps(self, now_s: float) -> float:
        """Of one worker, on average, since we look: what was told, and what will have come since."""
        return self._num_steps + self._steps_per_s * min(now_s - self._heard_s, MAX_AHEAD_S)

    @property
    def is_known(self) -> bool:
        """Some worker tells its totals."""
        return any(self._marks.values())

    def law(self) -> StepLaw | None:
        """None: not enough was told."""
        segments = [marks for marks in self._marks.values() if len(marks) > 1]
        growths = [_growth(marks[0], marks[-1]) for marks in segments]
        seconds, *nums = map(sum, zip(*growths, strict=True)) if growths else (0.0, 0)
        if nums[0] < MIN_STEPS:
            return None
        scale = seconds / sum(share * num for share, num in zip(USUAL, nums, strict=True))
        usual = [share * scale for share in USUAL]
        times = _fitted(segments, usual, step_s=seconds / nums[0])
        level = _level(segments, law := [time * share for time, share in zip(times, usual, strict=True)])
        fixed_s, per_row_s, per_prompt_token_s = (share * level for share in law)
        return StepLaw(fixed_s, per_row_s, per_prompt_token_s, seen=self._seen())

    def _seen(self) -> Steps:
        """Of the worker that has seen most: others' machines may be of another speed."""
        return max((marks[-1].decode_steps for marks in self._marks.values() if marks), key=len, default=())


def _note(marks: deque[WorkerTold], told: WorkerTold) -> int:
    """The steps made since the last mark. After a start, or a time without rows, a row of marks begins anew."""
    last = marks[-1] if marks else told
    is_new = told.told_s > last.told_s and told.num_steps >= last.num_steps
    if told.told_s != last.told_s and not (is_new and last.num_running):
        marks.clear()
    if told.told_s and (not marks or is_new):
        marks.append(told)
    return told.num_steps - last.num_steps if is_new else 0


def _growth(before: WorkerTold, after: WorkerTold) -> tuple[float, int, int, int]:
    """Seconds, steps, rows in them, prompt tokens in them."""
    return (
        after.told_s - before.told_s,
        after.num_steps - before.num_steps,
        after.num_decode_tokens - before.num_decode_tokens,
        after.num_prefill_tokens - before.num_prefill_tokens,
    )


def _speed(marks: deque[WorkerTold]) -> float:
    if len(marks) < 2:
        return 0.0
    seconds, steps, *_ = _growth(marks[-2], marks[-1])
    return steps / seconds


def _level(segments: Sequence[deque[WorkerTold]], law: Sequence[float]) -> float:
    """How many times longer steps took of late: a machine has other things to do now and then."""
    late = [_growth(marks[-min(len(marks), NUM_LATE)], marks[-1]) for marks in segments]
    seconds, *nums = map(sum, zip(*late, strict=True))
    foretold_s = sum(share * num for share, num in zip(law, nums, strict=True))
    return seconds / foretold_s if foretold_s and nums[0] >= MIN_STEPS else 1.0


def _fitted(segments: Sequence[deque[WorkerTold]], usual: Sequence[float], *, step_s: float) -> list[float]:
    """How many times the usual share each one is; none is negative."""
    products = [[0.0] * 4 for _ in range(3)]  # of the three unknowns with each other, and with the seconds
    for values in _centred(segments, usual):
        for i, j in product(range(3), range(4)):
            products[i][j] += values[i] * values[j]
    pull = 4 * step_s**2  # in one batch size the marks say nothing of a share, but for their errors
    for i in (0, 2):
        for one, other, sign in ((i, i, 1), (1, 1, 1), (i, 1, -1), (1, i, -1)):
            products[one][other] += sign * pull
    free = [0, 1, 2]
    while True:
        found = dict(zip(free, _solved([[products[i][j] for j in (*free, 3)] for i in free]), strict=True))
        worst = min(free, key=lambda i: found[i])
        if found[worst] >= 0 or len(free) == 1:
            return [max(0.0, found.get(i, 0.0)) for i in range(3)]
        free.remove(worst)


def _centred(segments: Sequence[deque[WorkerTold]], usual: Sequence[float]) -> Iterator[list[float]]:
    """Of each mark what the usual shares take, and the seconds: less the mean of its worker's marks."""
    for marks in segments:
        grown = [_growth(marks[0], mark) for mark in marks]
        rows = [[*(share * num for share, num in zip(usual, nums, strict=True)), s] for s, *nums in grown]
        means = [fmean(column) for column in zip(*rows, strict=True)]
        yield from ([value - mean for value, mean in zip(row, means, strict=True)] for row in rows)


def _solved(rows: list[list[float]]) -> list[float]:
    """Gauss and Jordan, of a few positive definite equations."""
    for i, pivot in enumerate(rows):
        rows[i] = pivot = [value / (pivot[i] or 1.0) for value in pivot]
        for j, row in enumerate(rows):
            if j != i:
                rows[j] = [value - row[i] * above for value, above in zip(row, pivot, strict=True)]
    return [row[-1] for row in rows]
