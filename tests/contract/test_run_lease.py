"""Who may execute a bulk run: one at a time, fenced when its lease runs out, taken over by one other."""

import itertools

import pytest
from tokenmill.wire.keys import RunKeys
from tokenmill.wire.store import RunTransitions, Store

from tests.support.waiting import wait_until

_numbers = itertools.count(1)


@pytest.fixture
def runs() -> RunTransitions:
    return RunTransitions(RunKeys(f"bulk-{next(_numbers)}"))


def hurried(runs: RunTransitions) -> RunTransitions:
    return RunTransitions(runs.keys, ttl_ms=1)


def lapse(store: Store, runs: RunTransitions, run_id: str) -> None:
    wait_until(lambda: run_id in store.run(runs.find_lapsed()), description=f"the lease of {run_id} has run out")


def test_one_execution_has_a_run_and_a_second_one_does_not_get_it(store: Store, runs: RunTransitions) -> None:
    fence = store.run(runs.acquire("r", "first"))
    assert fence is not None
    assert store.run(runs.acquire("r", "second")) is None
    assert store.run(runs.acquire("r", "first")) == fence, "a lost reply may be asked for again"
    assert store.run(runs.release("r", "first", fence))
    assert store.run(runs.acquire("r", "second")) is not None


def test_a_lease_that_ran_out_is_reclaimed_once_and_its_execution_is_fenced(store: Store, runs: RunTransitions) -> None:
    fence = store.run(hurried(runs).acquire("r", "first"))
    assert fence is not None
    lapse(store, runs, "r")
    taken = store.run(runs.reclaim("r"))
    assert taken is not None
    assert store.run(runs.reclaim("r")) is None
    assert not store.run(runs.renew("r", "first", fence, has_progress=False)).is_held
    assert not store.run(runs.release("r", "first", fence))
    assert store.run(runs.acquire("r", "second")) is not None, "whoever is next gets it at once"


def test_a_late_execution_goes_on_when_nobody_took_its_run(store: Store, runs: RunTransitions) -> None:
    fence = store.run(hurried(runs).acquire("r", "first"))
    assert fence is not None
    lapse(store, runs, "r")
    assert store.run(runs.renew("r", "first", fence, has_progress=False)).is_held
    assert store.run(runs.find_lapsed()) == []


def test_the_release_after_a_reclaim_leaves_the_next_execution_alone(store: Store, runs: RunTransitions) -> None:
    store.run(hurried(runs).acquire("r", "first"))
    lapse(store, runs, "r")
    taken = store.run(runs.reclaim("r"))
    assert taken is not None
    fence = store.run(runs.acquire("r", "second"))
    assert fence is not None
    assert not store.run(runs.release("r", "", taken.fence))
    assert store.run(runs.renew("r", "second", fence, has_progress=False)).is_held


def test_a_reclaimer_that_dies_is_followed_by_the_next(store: Store, runs: RunTransitions) -> None:
    store.run(hurried(runs).acquire("r", "first"))
    lapse(store, runs, "r")
    assert store.run(hurried(runs).reclaim("r")) is not None
    lapse(store, runs, "r")
    again = store.run(runs.reclaim("r"))
    assert again is not None
    assert again.num_retaken == 1, "a dead reclaimer says nothing against the run"
    assert store.run(runs.release("r", "", again.fence))
    assert store.run(runs.find_lapsed()) == []


def test_deaths_are_counted_until_the_run_makes_progress(store: Store, runs: RunTransitions) -> None:
    counts = []
    for number in range(4):
        fence = store.run(hurried(runs).acquire("r", f"execution {number}"))
        assert fence is not None
        if number == 2:
            store.run(hurried(runs).renew("r", f"execution {number}", fence, has_progress=True))
        lapse(store, runs, "r")
        taken = store.run(runs.reclaim("r"))
        assert taken is not None
        counts.append(taken.num_retaken)
        store.run(runs.release("r", "", taken.fence))
    assert counts == [1, 2, 1, 2]


def test_a_wish_to_stop_is_told_at_the_next_renewal_until_it_is_forgotten(store: Store, runs: RunTransitions) -> None:
    fence = store.run(runs.acquire("r", "first"))
    assert fence is not None
    assert not store.run(runs.renew("r", "first", fence, has_progress=False)).is_stop_wanted
    store.send(runs.want_stop("r"))
    assert store.run(runs.renew("r", "first", fence, has_progress=False)).is_stop_wanted
    assert store.run(runs.inspect("r")).is_stop_wanted
    store.send(runs.forget_stop("r"))
    record = store.run(runs.inspect("r"))
    assert (record.owner, record.is_stop_wanted) == ("first", False)
    assert record.lease_left_s is not None
    assert record.lease_left_s > 0


def test_every_key_of_a_run_ends_one_day(store: Store, runs: RunTransitions) -> None:
    fence = store.run(runs.acquire("r", "first"))
    assert fence is not None
    store.run(runs.renew("r", "first", fence, has_progress=True))
    store.send(runs.want_stop("r"))
    names = list(store.client.scan_iter(match=f"{runs.keys.tag}*"))
    assert len(names) == 2
    assert all(store.client.ttl(name) > 0 for name in names)
