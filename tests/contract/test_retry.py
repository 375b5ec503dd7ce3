"""Requests on which the engine failed: they come again after a while, and not for ever."""

import pytest
from tokenmill.wire.keys import MAX_RETRIES, RETRY_BACKOFF_MS, Keys, Lane
from tokenmill.wire.store import BeginReply, Held, Store

from tests.support.hands import Hands, add_raw, delta, done, hash_fields, submission


def retry(hands: Hands, job: BeginReply) -> str:
    (status,) = hands.store.run(hands.transitions.retry(hands.worker, [Held(job.request_id, job.fence)]))
    return status


def make_due(store: Store, keys: Keys, request_id: str = "q-1") -> None:
    """Instead of waiting: the backoff is over."""
    store.client.zadd(keys.not_before, {request_id: 1})


def test_there_is_a_backoff_for_each_retry() -> None:
    assert len(RETRY_BACKOFF_MS) == MAX_RETRIES


def test_a_retried_request_waits_and_is_continued_where_it_stood(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    hands.publish(job, delta(0, "a", 1))
    assert retry(hands, job) == "ok"
    assert store.client.xlen(keys.lane(Lane.NORMAL)) == 0
    assert (store.run(hands.transitions.sweep()), hands.fetch(Lane.RESUME)) == (0, [])
    make_due(store, keys)
    assert store.run(hands.transitions.sweep()) == 1
    again = hands.begin_next(Lane.RESUME)
    assert (again.published, again.failed, again.crashed, again.fence) == (1, 1, 0, job.fence + 1)
    assert hands.finish(again, done("ab", 2), delta(1, "b", 2)).status == "ok"


def test_retries_wait_longer_and_longer_and_end(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    lane = Lane.NORMAL
    for backoff_ms in RETRY_BACKOFF_MS:
        job = hands.begin_next(lane)
        assert retry(hands, job) == "ok"
        seconds, microseconds = store.client.time()
        due_ms = store.client.zscore(keys.not_before, "q-1") or 0.0
        assert backoff_ms - 1000 < due_ms - seconds * 1000 - microseconds // 1000 <= backoff_ms
        make_due(store, keys)
        store.run(hands.transitions.sweep())
        lane = Lane.RESUME
    job = hands.begin_next(lane)
    assert retry(hands, job) == "exhausted"
    assert hash_fields(store, keys.job("q-1"))["state"] == "running"
    assert hands.finish(job, done(""), state="failed").status == "ok"


def test_retrying_twice_is_the_same_as_once(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    assert [retry(hands, job), retry(hands, job)] == ["ok", "fenced"]
    assert hash_fields(store, keys.job("q-1"))["failed"] == "1"


@pytest.mark.parametrize("fence", [0, 2])
def test_a_request_that_is_anothers_is_left_alone(hands: Hands, store: Store, fence: int) -> None:
    hands.submit(submission())
    hands.begin_next()
    assert store.run(hands.transitions.retry("w-1", [Held("q-1", fence)])) == ["fenced"]
    assert store.run(hands.transitions.retry("w-2", [Held("q-1", 1)])) == ["fenced"]


def test_a_quarantined_request_is_retried_in_quarantine(hands: Hands, store: Store, keys: Keys) -> None:
    add_raw(store, keys, Lane.QUARANTINE, id="q-1", prompt="hi")
    retry(hands, hands.begin_next(Lane.QUARANTINE))
    make_due(store, keys)
    store.run(hands.transitions.sweep())
    assert hands.begin_next(Lane.QUARANTINE).failed == 1


def test_a_retried_request_can_be_cancelled_while_it_waits(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    retry(hands, hands.begin_next())
    assert hands.cancel("q-1") == ["cancelled"]
    assert store.client.zcard(keys.not_before) == 0
