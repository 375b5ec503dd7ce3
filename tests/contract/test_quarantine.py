"""Requests under which workers die: suspected, set apart, and dead once they were caught alone."""

import pytest
from tokenmill.wire.errors import FencedError
from tokenmill.wire.keys import MAX_ALONE_CRASHES, MAX_CRASHES, Keys, Lane
from tokenmill.wire.store import BeginReply, Store

from tests.support.hands import Hands, add_raw, delta, die, done, hash_fields, reap, stream_entries, submission


def successor(worker: Hands) -> Hands:
    """The worker dies, and another one takes over from it."""
    die(worker)
    name, _, number = worker.worker.partition("-")
    following = Hands(worker.store, worker.keys, f"{name}-{int(number) + 1}")
    reap(following, worker.worker)
    return following


def quarantined(hands: Hands) -> Hands:
    """Workers died under q-1 without a token until it is in quarantine; the last one's successor."""
    hands.submit(submission())
    lane = Lane.NORMAL
    for crash in range(MAX_CRASHES):
        assert hands.begin_next(lane).crashed == crash
        hands, lane = successor(hands), Lane.RESUME
    return hands


def begin_alone(hands: Hands) -> BeginReply:
    found = hands.store.run(hands.transitions.quarantine(hands.worker))
    assert found.delivery is not None
    (reply,) = hands.begin(found.delivery.claim())
    return reply


def test_a_request_under_which_workers_died_waits_in_quarantine(hands: Hands) -> None:
    hands = quarantined(hands)
    assert hands.fetch(Lane.RESUME) == []
    assert begin_alone(hands).status == "begun"


def test_a_request_that_was_only_near_a_crash_finishes_in_quarantine(hands: Hands) -> None:
    hands = quarantined(hands)
    assert hands.finish(begin_alone(hands), done("a", 1), delta(0, "a", 1)).status == "ok"
    assert [fields[b"type"] for _, fields in hands.entries("q-1")] == [b"delta", b"done"]


def test_a_request_that_kills_alone_at_the_same_token_again_is_dead(hands: Hands, store: Store, keys: Keys) -> None:
    hands = quarantined(hands)
    for _ in range(MAX_ALONE_CRASHES):
        assert begin_alone(hands).status == "begun"
        hands = successor(hands)
    assert store.run(hands.transitions.quarantine(hands.worker)).num_left == 0
    terminal = hands.entries("q-1")[-1][1]
    assert terminal[b"type"] == b"error"
    assert b"worker_crashed" in terminal[b"error"]
    assert b"2 times among others, then 2 times alone" in terminal[b"error"]
    ((_, letter),) = stream_entries(store, keys.dead)
    assert letter[b"reason"].startswith(b"worker_crashed: ")
    assert (letter[b"id"], letter[b"lane"], letter[b"body"]) == (b"q-1", b"q", submission().body)
    assert hash_fields(store, keys.job("q-1"))["state"] == "dead"


def test_crashes_alone_at_different_tokens_are_chance(hands: Hands, store: Store, keys: Keys) -> None:
    hands = quarantined(hands)
    for turn in range(MAX_ALONE_CRASHES + 2):
        hands.publish(begin_alone(hands), delta(turn, "x", turn))
        hands = successor(hands)
    assert "alone" not in hash_fields(store, keys.job("q-1")), "who saw it grow bears no witness against it"
    assert begin_alone(hands).published == MAX_ALONE_CRASHES + 2


def test_an_owner_that_died_after_progress_does_not_count_beside_one_that_died_at_once(
    hands: Hands, store: Store, keys: Keys
) -> None:
    hands = quarantined(hands)
    hands.publish(begin_alone(hands), delta(0, "x", 0))
    for _ in range(MAX_ALONE_CRASHES):
        hands = successor(hands)
        assert begin_alone(hands).published == 1
    successor(hands)
    assert hash_fields(store, keys.job("q-1"))["state"] == "dead"


def test_one_of_a_lane_is_at_work_at_a_time(hands: Hands, store: Store, keys: Keys) -> None:
    for request_id in ("a", "b"):
        add_raw(store, keys, Lane.QUARANTINE, id=request_id, prompt="hi")
    first = begin_alone(hands)
    other = Hands(store, keys, "w-9")
    assert store.run(other.transitions.quarantine("w-9")).delivery is None
    hands.finish(first, done(""))
    assert begin_alone(other).request_id == "b"


def test_what_was_handed_out_is_handed_out_again_to_whom_it_was(hands: Hands, store: Store, keys: Keys) -> None:
    add_raw(store, keys, Lane.QUARANTINE, id="a", prompt="hi")
    call = hands.transitions.quarantine("w-1")
    assert store.run(call) == store.run(call)
    assert store.run(call).num_left == 1


def test_an_entry_that_was_deleted_while_it_was_pending_has_no_fields(hands: Hands, store: Store, keys: Keys) -> None:
    entry_id = add_raw(store, keys, Lane.QUARANTINE, id="a", prompt="hi")
    store.run(hands.transitions.quarantine("w-1"))
    store.client.xdel(keys.lane(Lane.QUARANTINE), entry_id)
    found = store.run(hands.transitions.quarantine("w-1")).delivery
    assert found is not None
    assert (found.entry_id, found.fields) == (entry_id, {})


def test_what_never_ran_goes_back_to_quarantine_uncounted(hands: Hands, store: Store, keys: Keys) -> None:
    hands = quarantined(hands)
    store.run(hands.transitions.quarantine(hands.worker))
    hands = successor(hands)
    assert "alone" not in hash_fields(store, keys.job("q-1"))
    job = begin_alone(hands)
    assert hands.release(job) == 1
    assert begin_alone(hands).fence > job.fence


def test_who_has_no_lease_gets_nothing(hands: Hands, store: Store) -> None:
    with pytest.raises(FencedError):
        store.run(hands.transitions.quarantine("stranger"))


def test_a_lost_group_is_made_again(hands: Hands, store: Store, keys: Keys) -> None:
    store.client.delete(keys.lane(Lane.QUARANTINE))
    assert store.run(hands.transitions.quarantine("w-1")).delivery is None
    add_raw(store, keys, Lane.QUARANTINE, id="a", prompt="hi")
    assert begin_alone(hands).request_id == "a"
