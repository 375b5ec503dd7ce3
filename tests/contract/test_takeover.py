"""Requests that leave their worker: handed back, taken over, suspected, given up."""

import pytest
import redis
from tokenmill.wire.errors import FencedError
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.store import Store

from tests.support.hands import (
    Hands,
    add_raw,
    delta,
    die,
    done,
    reap,
    submission,
)


def test_what_a_worker_hands_back_is_continued_where_it_stood(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    hands.publish(job, delta(0, "a", 1))
    assert [hands.release(job), hands.release(job)] == [1, 0]
    assert store.run(hands.transitions.leave("w-1"))
    second = Hands(store, keys, "w-2")
    again = second.begin_next(Lane.RESUME)
    assert (again.published, again.crashed, again.fence) == (1, 0, job.fence + 1)


def test_a_worker_that_holds_something_cannot_leave(hands: Hands, store: Store) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    assert not store.run(hands.transitions.leave("w-1"))
    hands.finish(job, done(""))
    assert store.run(hands.transitions.leave("w-1"))
    assert hands.renew().is_fenced


def test_a_dead_workers_requests_are_taken_over_and_its_late_writes_refused(
    hands: Hands, store: Store, keys: Keys
) -> None:
    hands.submit(submission("ran"), submission("was-read"))
    entry_id = add_raw(store, keys, prompt="raw")
    ran, *_ = hands.fetch()
    (job,) = hands.begin(ran.claim())
    die(hands)
    second = Hands(store, keys, "w-2")
    assert reap(second, "w-1") == 3
    assert hands.renew().is_fenced
    assert hands.publish(job, delta(0, "a", 1)).status == "fenced"
    assert hands.finish(job, done("")).status == "fenced"
    resumed = second.begin(*(delivery.claim() for delivery in second.fetch(Lane.RESUME)))
    assert [reply.request_id for reply in resumed] == ["ran", "was-read", f"2-{entry_id}"]
    assert [reply.crashed for reply in resumed] == [1, 0, 0]
    assert store.client.xlen(keys.lane(Lane.NORMAL)) == 0


def test_a_worker_with_a_lease_is_not_reaped(hands: Hands, store: Store, keys: Keys) -> None:
    Hands(store, keys, "w-2")
    assert store.run(hands.transitions.find_dead()) == []
    assert not store.run(hands.transitions.mark_dead("w-2", "w-1"))
    assert not hands.renew().is_fenced


def test_only_a_worker_with_a_lease_may_reap(hands: Hands, store: Store) -> None:
    with pytest.raises(FencedError):
        store.run(hands.transitions.mark_dead("nobody", "w-1"))
    with pytest.raises(FencedError):
        store.run(hands.transitions.reap("nobody", "w-1", []))


def test_a_name_that_is_being_reaped_cannot_register(hands: Hands, store: Store, keys: Keys) -> None:
    die(hands)
    second = Hands(store, keys, "w-2")
    store.run(second.transitions.mark_dead("w-2", "w-1"))
    with pytest.raises(FencedError):
        Hands(store, keys, "w-1")


def test_a_holder_without_any_lease_is_found(hands: Hands, store: Store, keys: Keys, server: redis.Redis) -> None:
    hands.submit(submission())
    hands.fetch()
    server.zrem(keys.workers, "w-1")
    assert store.run(hands.transitions.find_dead()) == ["w-1"]


def test_a_request_that_makes_progress_is_never_suspected(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    worker, lane = hands, Lane.NORMAL
    for turn in range(3):
        job = worker.begin_next(lane)
        assert job.crashed == 0
        worker.publish(job, delta(turn, "x", turn))
        die(worker)
        survivor = Hands(store, keys, f"w-{turn + 2}")
        reap(survivor, worker.worker)
        worker, lane = survivor, Lane.RESUME
