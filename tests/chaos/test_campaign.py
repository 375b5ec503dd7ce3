"""The short campaign, on every change; `make chaos` runs the long one."""

from tests.chaos.__main__ import DEFAULT_SEED
from tests.chaos.campaign import SHORT, SHORT_PARTED, run_campaign
from tests.support.checker import check


def test_every_invariant_holds_under_faults() -> None:
    told: list[str] = []
    outcome = run_campaign(DEFAULT_SEED, SHORT, told.append)
    assert check(outcome.history) == [], told
    assert (outcome.counts["kill"], outcome.counts["zombie"], outcome.counts["restart"]) == (3, 1, 1)
    assert outcome.counts["requests"] == SHORT.num_requests


def test_every_invariant_holds_over_several_partitions() -> None:
    told: list[str] = []
    outcome = run_campaign(DEFAULT_SEED, SHORT_PARTED, told.append)
    assert check(outcome.history) == [], told
    assert (outcome.counts["kill"], outcome.counts["requests"]) == (1, SHORT_PARTED.num_requests)
