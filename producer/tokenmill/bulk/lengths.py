"""How long answers are, learnt while many are still being written. Pure.

Kaplan and Meier's estimate of survival (1958): an answer that its max_tokens cut short, or that is not finished, says
only that it is longer than that. Beyond the longest that ended by itself, each further token ends an answer as often
as the tokens seen did.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

LEAST = 1e-9  # a share of a share: keeps what is taken the logarithm of above zero


class Survival(NamedTuple):
    """Of all answers, the share `alive[i]` is longer than `lengths[i]` tokens; after the last, `hazard` per token."""

    lengths: list[int]
    alive: list[float]
    hazard: float

    def share_beyond(self, num_tokens: float) -> float:
        """Of all answers, those that are longer."""
        place = bisect_right(self.lengths, num_tokens)
        share = self.alive[place - 1] if place else 1.0
        beyond = num_tokens - self.lengths[-1] if self.lengths else num_tokens
        return share * max(math.exp(-self.hazard * beyond), LEAST) if beyond > 0 else share

    def length_at(self, share: float) -> float:
        """So many tokens that just this share of all answers is longer; infinite where none was seen to end."""
        place = bisect_left(self.alive, -share, key=lambda value: -value)
        if place < len(self.alive):
            return self.lengths[place]
        last, rest = (self.lengths[-1], self.alive[-1]) if self.lengths else (0, 1.0)
        return last + math.log(rest / share) / self.hazard if self.hazard > 0 else math.inf


class Lengths:
    """Of finished answers; memory is bounded by the number of different lengths."""

    def __init__(self) -> None:
        self._ended: Counter[int] = Counter()  # by themselves
        self._cut: Counter[int] = Counter()  # by max_tokens: without it they would be longer
        self.num_finished = 0

    def add(self, num_tokens: int, *, is_cut: bool) -> None:
        (self._cut if is_cut else self._ended)[num_tokens] += 1
        self.num_finished += 1

    def survival(self, so_far: Iterable[int]) -> Survival:
        """`so_far`: tokens of each answer that is being written."""
        leaving = Counter(self._cut)
        leaving.update(so_far)
        num_left = leaving.total() + self._ended.total()
        num_tokens = sum(length * num for counts in (leaving, self._ended) for length, num in counts.items())
        share, lengths, alive = 1.0, list[int](), list[float]()
        for length in sorted(leaving.keys() | self._ended.keys()):
            if num := self._ended[length]:
                share *= 1 - num / num_left
                lengths.append(length)
                alive.append(share)
            num_left -= num + leaving[length]
        if share == 0.0:  # the longest of all has ended: some will be as long, none is known to be longer
            return Survival(lengths, alive, 0.0)
        return Survival(lengths, alive, self._ended.total() / max(1, num_tokens))
