"""Entries that are no requests."""

import pytest
from tokenmill.wire.errors import DecodeError
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.store import Store

from tests.support.hands import (
    Hands,
    add_raw,
    done,
    failed,
    stream_entries,
    submission,
)


def test_burying_twice_leaves_one_letter_and_one_terminal_error(hands: Hands, store: Store, keys: Keys) -> None:
    add_raw(store, keys, body=b"\xff{", id="mine")
    (delivery,) = hands.fetch()
    with pytest.raises(DecodeError):
        delivery.claim()
    assert delivery.request_id == "mine"
    bury = hands.transitions.bury(
        "w-1",
        delivery.lane,
        delivery.entry_id,
        delivery.fields,
        "not UTF-8",
        terminal=failed("invalid", "not UTF-8"),
        request_id="mine",
    )
    assert [store.run(bury), store.run(bury)] == [True, False]
    ((_, letter),) = stream_entries(store, keys.dead)
    assert letter[b"field:body"] == b"\xff{"
    assert [fields[b"type"] for _, fields in hands.entries("mine")] == [b"error"]
    assert store.client.xlen(keys.lane(Lane.NORMAL)) == 0


def test_burying_never_touches_a_request_that_exists(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    add_raw(store, keys, body=b"{", id="q-1")
    (delivery,) = hands.fetch()
    call = hands.transitions.bury(
        "w-1", delivery.lane, delivery.entry_id, delivery.fields, "no JSON", terminal=failed("x", "y"), request_id="q-1"
    )
    assert store.run(call)
    assert hands.entries("q-1") == []
    assert hands.finish(job, done("")).status == "ok"
