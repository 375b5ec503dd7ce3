"""Requests whose keys somebody else wrote into are ended, by their owner and by nobody else."""

import pytest
import redis
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.store import Claim, Store

from tests.support.hands import Hands, delta, done, hash_fields, stream_entries, submission


def condemn(hands: Hands, claim: Claim, *, fence: int | None = None) -> bool:
    call = hands.transitions.condemn(hands.worker, claim, fence=fence, code="keys_corrupted", message="why")
    return hands.store.run(call)


def claimed(hands: Hands) -> Claim:
    (delivery,) = hands.fetch()
    return delivery.claim()


def test_what_is_left_of_a_request_is_told_and_it_is_dead(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission(group="run", deadline_s=60))
    claim = claimed(hands)
    (job,) = hands.begin(claim)
    hands.publish(job, delta(0, "a", 1))
    assert [condemn(hands, claim), condemn(hands, claim)] == [True, False]
    entry_id, terminal = hands.entries("q-1")[-1]
    assert (entry_id, terminal[b"type"], terminal[b"text"]) == ("1-1", b"error", b"a")
    assert b"keys_corrupted" in terminal[b"error"]
    ((_, letter),) = stream_entries(store, keys.dead)
    assert (letter[b"reason"], letter[b"body"]) == (b"keys_corrupted: why", submission(group="run", deadline_s=60).body)
    assert hash_fields(store, keys.group("run")) == {"total": "1", "dead": "1"}
    assert hash_fields(store, keys.job("q-1"))["state"] == "dead"
    assert store.client.exists(keys.deadlines) == store.client.xlen(keys.lane(Lane.NORMAL)) == 0
    assert min(store.client.ttl(keys.job("q-1")), store.client.ttl(keys.result("q-1"))) > 0


def test_what_stands_in_the_way_is_removed(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    claim = claimed(hands)
    store.client.delete(keys.job("q-1"))
    store.client.rpush(keys.job("q-1"), "junk")
    store.client.set(keys.result("q-1"), "junk")
    assert condemn(hands, claim)
    assert [fields[b"type"] for _, fields in hands.entries("q-1")] == [b"error"]
    assert hash_fields(store, keys.job("q-1"))["state"] == "dead"


def test_a_result_that_nothing_can_follow_is_told_anew(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    claim = claimed(hands)
    store.client.xadd(keys.result("q-1"), {"type": "delta"}, id="99999999-0")
    assert condemn(hands, claim)
    assert [entry_id for entry_id, _ in hands.entries("q-1")] == ["0-1"]


def test_a_request_whose_entry_is_acked_already_is_its_owners_still(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    claim = claimed(hands)
    (job,) = hands.begin(claim)
    store.client.xack(keys.lane(Lane.NORMAL), "w", claim.entry_id)
    assert not condemn(hands, claim, fence=job.fence + 1)
    assert condemn(hands, claim, fence=job.fence)


def test_nobody_else_can_end_it(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    claim = claimed(hands)
    (job,) = hands.begin(claim)
    other = Hands(store, keys, "w-2")
    assert not condemn(other, claim, fence=job.fence)
    assert hands.finish(job, done("")).status == "ok"
    assert not condemn(hands, claim, fence=job.fence)
    assert store.client.xlen(keys.dead) == 0


def test_an_entry_that_names_anothers_running_request_is_acked_and_leaves_it_alone(
    hands: Hands, store: Store, keys: Keys
) -> None:
    hands.submit(submission())
    (job,) = hands.begin(claimed(hands))
    other = Hands(store, keys, "w-2")
    store.client.xadd(keys.lane(Lane.NORMAL), {"id": "q-1"})
    assert condemn(other, claimed(other))
    assert hands.finish(job, done("")).status == "ok"


def test_what_all_share_is_nobodys_fault(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    claim = claimed(hands)
    store.client.set(keys.not_before, "junk")
    with pytest.raises(redis.ResponseError, match=r"CORRUPTED .*:at is a string"):
        condemn(hands, claim)
    assert hands.entries("q-1") == []
