"""The short campaign, on every change; `make chaos` runs the long one."""

from tests.chaos.__main__ import DEFAULT_SEED
from tests.chaos.campaign import SHORT, run_campaign
from tests.support.checker import check


def test_every_invariant_holds_under_faults() -> None:
    told: list[str] = []
    outcome = run_campaign(DEFAULT_SEED, SHORT, told.append)
    assert check(outcome.history) == [], told
    assert (outcome.counts["kill"], outcome.counts["zombie"], outcome.counts["restart"]) == (3, 1, 1)
    assert outcome.counts["requests"] == SHORT.num_requests
