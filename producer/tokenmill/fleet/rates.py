"""How fast the totals of workers grow. Pure: knows no server and no clock of its own."""

from collections import deque
from collections.abc import Iterable

from tokenmill.fleet.values import Rates, Totals

WINDOW_S = 5.0  # long enough for a calm figure, short enough to follow; workers tell their totals once a second


class RateBook:
    """Totals of each worker over the last WINDOW_S of its own clock."""

    def __init__(self) -> None:
        self._told: dict[str, deque[Totals]] = {}

    def note(self, worker: str, totals: Totals) -> Rates:
        """The worker's rates, this last word of it included."""
        told = self._told.setdefault(worker, deque())
        if told and totals.told_s < told[-1].told_s:  # somebody new under an old name
            told.clear()
        if not told or totals.told_s > told[-1].told_s:
            told.append(totals)
        while len(told) > 2 and told[1].told_s <= totals.told_s - WINDOW_S:
            told.popleft()
        return _between(told[0], told[-1])

    def forget_all_but(self, workers: Iterable[str]) -> None:
        alive = set(workers)
        for name in self._told.keys() - alive:
            del self._told[name]


def _between(before: Totals, after: Totals) -> Rates:
    seconds = after.told_s - before.told_s
    if seconds <= 0:
        return Rates(cached_share=_share(after.num_cached_tokens, after.num_prefill_tokens))
    num_prefill = after.num_prefill_tokens - before.num_prefill_tokens
    return Rates(
        decode_tokens_per_s=(after.num_decode_tokens - before.num_decode_tokens) / seconds,
        prefill_tokens_per_s=num_prefill / seconds,
        steps_per_s=(after.num_steps - before.num_steps) / seconds,
        requests_per_s=(after.num_ended - before.num_ended) / seconds,
        cached_share=_share(after.num_cached_tokens - before.num_cached_tokens, num_prefill),
    )


def _share(num_cached: int, num_computed: int) -> float | None:
    return num_cached / (num_cached + num_computed) if num_cached + num_computed else None


def total(parts: Iterable[tuple[Rates, Totals]]) -> Rates:
    """Of all workers together; the cached share over their whole lives, weighted by tokens."""
    listed = list(parts)
    rates = [rates for rates, _ in listed]
    return Rates(
        decode_tokens_per_s=sum(one.decode_tokens_per_s for one in rates),
        prefill_tokens_per_s=sum(one.prefill_tokens_per_s for one in rates),
        steps_per_s=sum(one.steps_per_s for one in rates),
        requests_per_s=sum(one.requests_per_s for one in rates),
        cached_share=_share(
            sum(totals.num_cached_tokens for _, totals in listed),
            sum(totals.num_prefill_tokens for _, totals in listed),
        ),
    )
