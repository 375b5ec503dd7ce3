"""The short way for plain requests: the same bytes as the long one, and no opinion on anything else."""

import hashlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.wire.errors import InvalidRequestError
from tokenmill.wire.keys import MAX_BODY_BYTES, RESULT_TTL_S, Lane
from tokenmill.wire.messages import Request, encode_plain
from tokenmill.wire.store import Submission

TURNS = [{"role": "system", "content": ""}, {"role": "user", "content": 'Grüße "\n\x00\u2028 👋'}]
PLAIN: list[dict[str, object]] = [
    {"prompt": "hello"},
    {"prompt": 'a "quote", \\, \x7f, \t and é'},
    {"messages": TURNS, "prompt": None},
    {"prompt": "a", "max_tokens": 2**31 - 1, "temperature": 0, "seed": -(2**63), "ignore_eos": True},
    {
        "prompt": "a",
        "temperature": 0.1 + 0.2,
        "seed": 2**64 - 1,
        "stop": "\n\n",
        "model": "smollm2",
        "ignore_eos": False,
    },
    {"prompt": "a", "temperature": -0.0, "priority": "normal", "group": None},
    {"prompt": "a", "priority": "bulk", "group": "run-1"},
]
# Good ones that are left to Request, and bad ones, about which Request says what is wrong.
LEFT: list[dict[str, object]] = [
    {},
    {"prompt": "a", "messages": TURNS},
    {"prompt": [1, 2]},
    {"prompt": ""},
    {"prompt": "\ud800"},
    {"prompt": "a", "user": "u"},
    {"prompt": "a", "max_tokens": True},
    {"prompt": "a", "max_tokens": 0},
    {"prompt": "a", "max_tokens": 8.0},
    {"prompt": "a", "temperature": math.nan},
    {"prompt": "a", "temperature": False},
    {"prompt": "a", "seed": 2**64},
    {"prompt": "a", "stop": ["x"]},
    {"prompt": "a", "model": ""},
    {"prompt": "a", "ignore_eos": 1},
    {"prompt": "a", "priority": "urgent"},
    {"prompt": "a", "priority": ["bulk"]},
    {"prompt": "a", "group": "a b"},
    {"prompt": "é" * (MAX_BODY_BYTES // 2)},
    {"messages": []},
    {"messages": [{"role": "bot", "content": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
    {"messages": [{"role": "user", "content": "x", "name": "bob"}]},
]


@pytest.mark.parametrize("fields", PLAIN)
def test_a_plain_request_gets_the_bytes_of_the_long_way(fields: dict[str, object]) -> None:
    request = Request.build(**fields)
    plain = encode_plain(fields)
    assert plain is not None
    assert (plain.body, plain.priority, plain.group) == (request.encode(), request.priority, request.group)


@pytest.mark.parametrize("fields", LEFT)
def test_what_is_unusual_is_left_alone(fields: dict[str, object]) -> None:
    assert encode_plain(fields) is None


@pytest.mark.parametrize("fields", PLAIN)
def test_a_submission_is_the_same_both_ways(fields: dict[str, object]) -> None:
    built = Submission.build("q-1", fields, not_before_ms=5)
    request = Request.build(**fields)
    assert built == Submission.of("q-1", request, built.lane, not_before_ms=5)
    assert built.digest == hashlib.sha256(request.encode()).hexdigest()
    assert built.result_ttl_s == RESULT_TTL_S


def test_an_unusual_submission_goes_the_long_way() -> None:
    built = Submission.build("q-1", {"prompt": [1, 2], "priority": "high", "result_ttl_s": 5})
    assert (built.lane, built.result_ttl_s, built.body) == (
        Lane.HIGH,
        5,
        b'{"prompt":[1,2],"x":{"priority":"high","result_ttl_s":5}}',
    )


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.text(max_size=3))
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "bot"]), "content": st.text(max_size=5)}),
    max_size=2,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "prompt": anything,
            "messages": anything | turns,
            "max_tokens": anything | st.integers(1, 100),
            "temperature": anything | st.floats(0, 2),
            "seed": anything,
            "stop": anything,
            "model": anything,
            "ignore_eos": anything,
            "priority": anything | st.sampled_from(["high", "normal", "bulk"]),
            "group": anything,
            "top_p": st.none() | st.floats(0.1, 1),
        },
    )
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_asked_both_ways_agree(fields: dict[str, object]) -> None:
    plain = encode_plain(fields)
    if plain is not None:
        request = Request.build(**fields)
        assert (plain.body, plain.priority, plain.group) == (request.encode(), request.priority, request.group)


def test_a_bad_request_is_refused_by_name_all_the_same() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Submission.build("q-1", {"prompt": "a", "max_tokens": 0})
    assert caught.value.param == "max_tokens"
