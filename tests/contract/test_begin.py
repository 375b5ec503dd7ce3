"""What becomes of an entry that a worker has read."""

import pytest
import redis
from tokenmill.wire.errors import FencedError
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.messages import Request
from tokenmill.wire.store import Store, Transitions

from tests.support.hands import (
    Hands,
    add_raw,
    delta,
    die,
    done,
    hash_fields,
    reap,
    server_ms,
    stream_entries,
    submission,
)
from tests.support.waiting import wait_until


def test_beginning_twice_gives_the_same_fence(hands: Hands) -> None:
    hands.submit(submission())
    (delivery,) = hands.fetch()
    assert hands.begin(delivery.claim())[0].fence == hands.begin(delivery.claim())[0].fence == 1


def test_a_worker_without_a_lease_begins_nothing(store: Store, transitions: Transitions) -> None:
    with pytest.raises(FencedError):
        store.run(transitions.begin("stranger", []))


def test_an_entry_whose_job_expired_is_acked(hands: Hands, server: redis.Redis, keys: Keys) -> None:
    hands.submit(submission())
    server.delete(keys.job("q-1"))
    assert hands.begin_next().status == "skipped"
    assert server.xlen(keys.lane(Lane.NORMAL)) == 0


def test_a_request_past_its_deadline_is_settled_before_it_is_begun(hands: Hands) -> None:
    hands.submit(submission(deadline_s=0.001))
    deadline_ms = int(hash_fields(hands.store, hands.keys.job("q-1"))["deadline_ms"])
    wait_until(lambda: server_ms(hands.store.client) >= deadline_ms, description="it is past its deadline")
    assert hands.begin_next().status == "expired"
    assert hands.entries("q-1")[-1][1][b"type"] == b"expired"


def test_a_raw_entry_becomes_a_job_under_its_lane_and_entry_id(hands: Hands, store: Store, keys: Keys) -> None:
    entry_id = add_raw(store, keys, prompt="why")
    job = hands.begin_next()
    assert job.request_id == f"2-{entry_id}"
    assert Request.decode(job.body).prompt == "why"


def test_a_raw_entry_with_the_same_body_is_absorbed(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission(max_tokens=5))
    hands.begin_next()
    add_raw(store, keys, body='{ "max_tokens": 5, "prompt": "hello" }', id="q-1")
    assert hands.begin_next().status == "skipped"
    assert store.client.xlen(keys.dead) == 0
    assert store.client.xlen(keys.lane(Lane.NORMAL)) == 1


def test_a_raw_entry_with_another_body_is_dead_lettered(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    first = hands.begin_next()
    add_raw(store, keys, prompt="other", id="q-1")
    assert hands.begin_next().status == "conflict"
    ((_, letter),) = stream_entries(store, keys.dead)
    assert (letter[b"reason"], letter[b"id"]) == (b"conflict", b"q-1")
    assert hands.finish(first, done("")).status == "ok"


def test_another_fingerprint_resets_what_was_told(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    hands.publish(hands.begin_next(fingerprint="one"), delta(0, "a", 1))
    die(hands)
    second = Hands(store, keys, "w-2")
    assert reap(second, "w-1") == 1
    again = second.begin_next(Lane.RESUME, fingerprint="two")
    assert (again.epoch, again.published) == (1, 0)
    assert second.publish(again, delta(0, "z", 9)).status == "ok"
    assert [entry_id for entry_id, _ in hands.entries("q-1")] == ["1-0", "4294967296-0", "4294967297-0"]
