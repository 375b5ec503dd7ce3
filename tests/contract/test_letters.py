"""Dead letters as a real server keeps them: read in pages, asked again only from what they tell of, removed."""

import pytest
from tokenmill.wire.errors import DecodeError
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.messages import Request
from tokenmill.wire.store import Store
from tokenmill.wire.store.letters import DeadLetter, count_letters, find_body, read_letters, remove_letters

from tests.support.hands import Hands, add_raw, hash_fields, submission

BODY = Request.build(prompt="hello", max_tokens=3).encode()


def add_letter(store: Store, keys: Keys, **fields: str | bytes) -> str:
    """As the scripts write one."""
    given = {"reason": "worker_crashed", "id": "q-1", "lane": "0", "entry": "5-0"} | fields
    entry_id: bytes = store.send([("XADD", keys.dead, "*", *(part for pair in given.items() for part in pair))])[0]
    return entry_id.decode()


def test_letters_are_read_newest_first_and_over_pages(store: Store, keys: Keys) -> None:
    ids = [add_letter(store, keys, id=f"q-{number}") for number in range(230)]
    assert store.run(count_letters(keys)) == 230
    assert [letter.letter_id for letter in store.run(read_letters(keys))] == ids[::-1]
    assert [letter.letter_id for letter in store.run(read_letters(keys, limit=120))] == ids[:-121:-1]


def test_removing_tells_how_many_there_still_were(store: Store, keys: Keys) -> None:
    ids = [add_letter(store, keys) for _ in range(103)]
    assert store.run(remove_letters(keys, [*ids, "1-1"])) == 103
    assert store.run(count_letters(keys)) == 0


def test_a_letter_keeps_what_an_undecodable_entry_carried_and_has_no_body(
    hands: Hands, store: Store, keys: Keys
) -> None:
    entry_id = add_raw(store, keys, colour=b"\xff\xfe", id="q-1")
    (delivery,) = hands.fetch()
    call = hands.transitions.bury("w-1", Lane.NORMAL, entry_id, delivery.fields, "unknown field", request_id="q-1")
    assert store.run(call)
    (letter,) = store.run(read_letters(keys))
    assert (letter.request_id, letter.lane, letter.entry, letter.reason) == ("q-1", "2", entry_id, "unknown field")
    assert letter.fields == {b"colour": b"\xff\xfe", b"id": b"q-1"}
    assert store.run(find_body(keys, letter)) is None


def test_the_body_comes_from_the_job_only_if_the_letter_tells_of_that_job(
    hands: Hands, store: Store, keys: Keys
) -> None:
    hands.submit(submission("q-1"))
    entry = hash_fields(store, keys.job("q-1"))["entry"]
    its_own = DeadLetter("1-0", "worker_crashed", "q-1", "2", entry)
    assert store.run(find_body(keys, its_own)) is None, "it waits still: nobody died of it"
    store.client.hset(keys.job("q-1"), "state", "dead")
    assert store.run(find_body(keys, its_own)) == submission("q-1").body
    assert store.run(find_body(keys, DeadLetter("1-0", "conflict", "q-1", "2", "7-0"))) is None


def test_a_letter_of_a_conflict_carries_the_second_request(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission("q-1"))
    add_raw(store, keys, Lane.BULK, id="q-1", prompt="another question")
    (delivery,) = hands.fetch(Lane.BULK)
    (reply,) = hands.begin(delivery.claim())
    assert reply.status == "conflict"
    (letter,) = store.run(read_letters(keys))
    body = store.run(find_body(keys, letter))
    assert body is not None
    again = Request.build(**letter.arguments(body))
    assert (letter.reason, again.prompt, again.priority) == ("conflict", "another question", "bulk")


def test_a_letter_whose_body_was_lost_is_one_without_a_request(store: Store, keys: Keys) -> None:
    add_letter(store, keys, body="")
    (letter,) = store.run(read_letters(keys))
    assert store.run(find_body(keys, letter)) is None


@pytest.mark.parametrize(("lane", "priority"), [("1", "high"), ("2", "normal"), ("3", "bulk"), ("0", "high")])
def test_asking_again_takes_the_lane_of_the_entry_or_else_the_request_s_own_priority(lane: str, priority: str) -> None:
    body = Request.build(prompt="hello", priority="high", max_tokens=3).encode()
    arguments = DeadLetter("1-0", "conflict", "q-1", lane, "5-0").arguments(body)
    again = Request.build(**arguments)
    assert (again.priority, again.prompt, again.sampling.max_tokens) == (priority, "hello", 3)


def test_a_body_that_is_no_request_says_so() -> None:
    with pytest.raises(DecodeError, match="not JSON"):
        DeadLetter("1-0", "conflict", "q-1", "2", "5-0").arguments(b"{oops")
