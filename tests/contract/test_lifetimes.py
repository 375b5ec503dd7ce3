"""Groups, lifetimes, and the keys that a transition may touch."""

from typing import Any

import pytest
import redis
from redis.crc import key_slot
from tokenmill.wire.keys import WATCH_TTL_MS, Keys, Lane
from tokenmill.wire.store import Call, Delivery, Script, Store, Transitions

from tests.support.hands import (
    LEASE_MS,
    Hands,
    add_raw,
    delta,
    done,
    failed,
    hash_fields,
    stream_entries,
    submission,
)
from tests.support.servers import keys_without_ttl


def test_a_group_counts_its_requests_and_fans_in_the_final_ones(hands: Hands, keys: Keys) -> None:
    hands.submit(*(submission(f"q-{i}", group="run") for i in range(3)))
    hands.cancel("q-2")
    first, second, third = hands.begin(*(delivery.claim() for delivery in hands.fetch()))
    assert third.status == "skipped"
    hands.finish(first, done(""))
    hands.finish(second, failed("boom", "it broke"), state="failed")
    counts = {"total": "3", "done": "1", "failed": "1", "cancelled": "1"}
    assert hash_fields(hands.store, keys.group("run")) == counts
    finals = [fields[b"id"].decode() for _, fields in stream_entries(hands.store, keys.group_done("run"))]
    assert finals == ["q-2", "q-0", "q-1"]


def test_at_rest_every_key_but_the_lanes_and_the_dead_letters_expires(
    hands: Hands, server: redis.Redis, queue: str, keys: Keys
) -> None:
    hands.submit(submission("a", group="run", deadline_s=60), submission("b", deadline_s=60), submission("c"))
    first, second, third = hands.begin(*(delivery.claim() for delivery in hands.fetch()))
    hands.finish(first, done("a", 1), delta(0, "a", 1))
    hands.cancel("b")
    hands.finish(second, done(""), state="cancelled")
    add_raw(hands.store, keys, nonsense="x")
    (broken,) = hands.fetch()
    hands.store.run(
        hands.transitions.bury(
            "w-1", broken.lane, broken.entry_id, broken.fields, "nonsense", terminal=failed("x", "y"), request_id="d"
        )
    )
    hands.finish(third, done(""))
    server.set(keys.watch, 1, px=WATCH_TTL_MS)
    hands.store.run(hands.transitions.show("w-1", b"{}"))
    assert hands.store.run(hands.transitions.leave("w-1"))
    assert keys_without_ttl(server, queue) == {keys.dead, *(keys.lane(lane) for lane in Lane)}


def test_a_result_lives_as_long_as_its_request_says(hands: Hands, server: redis.Redis, keys: Keys) -> None:
    hands.submit(submission(result_ttl_s=77))
    hands.finish(hands.begin_next(), done(""))
    assert 70 < server.ttl(keys.job("q-1")) <= 77
    assert 70 < server.ttl(keys.result("q-1")) <= 77


def test_a_call_stays_in_one_slot_of_a_cluster(transitions: Transitions) -> None:
    calls: list[Call[Any]] = [
        transitions.submit([submission(group="g")]),
        transitions.register("w", {}, LEASE_MS),
        transitions.begin("w", [Delivery(Lane.NORMAL, "1-0", {b"id": b"q", b"group": b"g"}).claim()]),
        transitions.reap("w", "v", []),
        transitions.leave("w"),
    ]
    assert len({key_slot(key.encode()) for call in calls for key in call.keys}) == 1


def test_a_script_that_touches_an_undeclared_key_would_be_caught_here(store: Store, keys: Keys) -> None:
    call = Call(Script.load("leave"), (keys.workers,) * 8, ("w",), bool)  # its ninth key is missing
    with pytest.raises(redis.ResponseError, match="undeclared key"):
        store.run(call)
