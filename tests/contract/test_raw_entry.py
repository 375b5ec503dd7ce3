"""A bare XADD: which fields it may have, and under which id its producer waits."""

import pytest
from tokenmill.wire.errors import TokenmillError
from tokenmill.wire.keys import Lane
from tokenmill.wire.messages import RawEntry, Request
from tokenmill.wire.store import Delivery

ENTRY = "1795414517689-0"
DEFAULT_ID = f"2-{ENTRY}"


def parse(**fields: bytes) -> tuple[str, Request]:
    return RawEntry.parse(Lane.NORMAL, ENTRY, {name.encode(): value for name, value in fields.items()})


def test_a_prompt_alone_is_a_request() -> None:
    assert parse(prompt=b"why") == (DEFAULT_ID, Request.build(prompt="why"))


@pytest.mark.parametrize(
    "fields",
    [
        {"body": b'{"prompt": "why"}', "id": b"q-1"},
        {"body": b'{"prompt": "why", "id": "q-1"}'},
        {"body": b'{"prompt": "why", "id": "q-1"}', "id": b"q-1"},
    ],
)
def test_an_id_may_stand_beside_the_body_or_in_it(fields: dict[str, bytes]) -> None:
    assert parse(**fields) == ("q-1", Request.build(prompt="why"))


BROKEN: list[tuple[dict[str, bytes], str, str]] = [
    ({"prompt": b"a", "colour": b"red"}, "colour", DEFAULT_ID),
    ({"prompt": b"a", "colour": b"red", "id": b"q-1"}, "colour", "q-1"),
    ({"id": b"q-1", "model": b"m"}, "model", "q-1"),
    ({}, "prompt", DEFAULT_ID),
    ({"prompt": b"a", "body": b"{}"}, "prompt", DEFAULT_ID),
    ({"prompt": b""}, "prompt", DEFAULT_ID),
    ({"prompt": b"\xff"}, "prompt", DEFAULT_ID),
    ({"body": b"\xff", "id": b"q-1"}, "body", "q-1"),
    ({"body": b"{", "id": b"\xff"}, "body", DEFAULT_ID),
    ({"prompt": b"a", "id": b"\xff"}, "id", DEFAULT_ID),
    ({"prompt": b"a", "id": b"not an id"}, "id", DEFAULT_ID),
    ({"body": b'{"prompt": "a", "id": 5}'}, "id", DEFAULT_ID),
    ({"body": b'{"prompt": "a", "id": "x"}', "id": b"y"}, "id", "y"),
    ({"body": b'{"prompt": "a", "id": "x", "temperature": -1}'}, "temperature", "x"),
]


@pytest.mark.parametrize(("fields", "param", "request_id"), BROKEN)
def test_a_broken_entry_names_its_fault_and_keeps_its_id(fields: dict[str, bytes], param: str, request_id: str) -> None:
    with pytest.raises(TokenmillError) as caught:
        parse(**fields)
    assert getattr(caught.value, "param", None) == param
    delivery = Delivery(Lane.NORMAL, ENTRY, {name.encode(): value for name, value in fields.items()})
    assert delivery.request_id == request_id


def test_a_submitted_entry_only_names_its_job_and_its_group() -> None:
    delivery = Delivery(Lane.HIGH, ENTRY, {b"id": b"q-1", b"group": b"run"})
    claim = delivery.claim()
    assert not delivery.is_raw
    assert (claim.request_id, claim.group, claim.raw) == ("q-1", "run", None)


def test_a_raw_entry_brings_the_group_of_its_body() -> None:
    delivery = Delivery(Lane.BULK, ENTRY, {b"body": b'{"prompt": "a", "x": {"group": "run"}}'})
    assert delivery.is_raw
    assert delivery.claim().group == "run"
