"""Every bad request ends with exactly one error at its own result key, and nothing else is disturbed."""

import pytest
from tokenmill.wire.keys import Lane
from tokenmill.wire.store import Submission

from tests.queue.harness import Bench, body, running_worker
from tests.support.waiting import wait_until

BAD_BODIES = {
    "prompt longer than the model": (body(prompt="x" * 9000), "context_length_exceeded"),
    "empty prompt": (body(prompt=""), "invalid_request"),
    "no prompt at all": (body(max_tokens=3), "invalid_request"),
    "max_tokens 0": (body(prompt="hi", max_tokens=0), "invalid_request"),
    "NaN temperature": (b'{"prompt": "hi", "temperature": NaN}', "invalid_request"),
    "negative temperature": (body(prompt="hi", temperature=-1), "invalid_request"),
    "unknown field": (body(prompt="hi", temprature=1), "unknown_field"),
    "unsupported field": (body(prompt="hi", tools=[{"type": "function"}]), "unsupported_field"),
    "unknown model": (body(prompt="hi", model="gpt-9"), "model_not_found"),
    "token id beyond the vocabulary": (body(prompt=[70000]), "invalid_request"),
    "more choices than rows": (body(prompt="hi", n=100), "invalid_request"),
    "not JSON": (b"{prompt: hi}", "undecodable"),
    "not an object": (b"[1, 2]", "undecodable"),
    "not UTF-8": (b'{"prompt": "\xff\xfe"}', "undecodable"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_body_gets_one_error_and_its_neighbours_their_answers(bench: Bench, case: str) -> None:
    bad, code = BAD_BODIES[case]
    bench.submit("before")
    bench.add_raw({"id": "bad", "body": bad})
    bench.submit("after")
    with running_worker(bench):
        terminal = bench.terminal("bad")
        assert bench.terminal("before").type == bench.terminal("after").type == "done"
    assert terminal.type == "error"
    assert terminal.error is not None
    assert (terminal.error.code, bool(terminal.error.message)) == (code, True)
    assert bench.is_at_rest()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"body": b"\xff\x00nonsense"}, b"undecodable"),
        ({"prompt": b"\xff\xfe"}, b"undecodable"),
        ({"prompt": "hi", "temperature": "0"}, b"unknown_field"),
        ({"hello": "world"}, b"unknown_field"),
        ({"id": "spaces are refused", "prompt": "hi"}, b"invalid_request"),
    ],
)
def test_an_entry_that_is_no_request_becomes_a_dead_letter_and_an_error_under_its_own_id(
    bench: Bench, fields: dict[str, str | bytes], reason: bytes
) -> None:
    with running_worker(bench):
        request_id = bench.add_raw(fields)
        assert bench.terminal(request_id).type == "error"
        assert bench.terminal(request_id).usage.completion_tokens == 0
    (letter,) = bench.dead_letters()
    assert reason in letter[b"reason"]


def test_a_submitted_body_that_cannot_be_decoded_gets_its_error(bench: Bench) -> None:
    """Not our client, but one that runs the same script with a body of its own making."""
    broken = Submission(request_id="q-1", body=b"{", digest="d", lane=Lane.NORMAL, result_ttl_s=60)
    bench.store.run(bench.transitions.submit([broken]))
    with running_worker(bench):
        terminal = bench.terminal("q-1")
    assert terminal.error is not None
    assert terminal.error.code == "undecodable"
    assert bench.job("q-1")["state"] == "failed"


def test_a_raw_id_that_comes_twice_with_the_same_body_is_answered_once(bench: Bench) -> None:
    with running_worker(bench):
        bench.add_raw({"id": "q-1", "prompt": "hi"})
        bench.add_raw({"id": "q-1", "prompt": "hi"})
        bench.submit("last")
        bench.wait_result("last")
        assert bench.terminal("q-1").type == "done"
    assert not bench.dead_letters()
    assert bench.is_at_rest()


def test_a_raw_id_that_comes_again_with_another_body_is_a_dead_letter_and_the_first_stays(
    bench: Bench,
) -> None:
    with running_worker(bench):
        bench.add_raw({"id": "q-1", "prompt": "hi"})
        first = bench.terminal("q-1")
        bench.add_raw({"id": "q-1", "prompt": "something else"})
        wait_until(bench.dead_letters, description="the dead letter")
    assert [letter[b"reason"] for letter in bench.dead_letters()] == [b"conflict"]
    assert bench.terminal("q-1") == first


@pytest.mark.parametrize("name", ["echo", "my-echo", None])
def test_a_request_may_ask_for_any_served_name_or_for_none(bench: Bench, name: str | None) -> None:
    with running_worker(bench, served_model_name="my-echo"):
        bench.submit("q-1", model=name)
        assert bench.terminal("q-1").type == "done"


def test_a_hundred_bad_requests_among_good_ones_cost_the_good_ones_nothing(bench: Bench) -> None:
    kinds = list(BAD_BODIES.values())
    for number in range(100):
        bench.add_raw({"id": f"bad-{number}", "body": kinds[number % len(kinds)][0]})
        if number % 10 == 0:
            bench.submit(f"good-{number}")
    with running_worker(bench):
        assert {bench.terminal(f"good-{number}").type for number in range(0, 100, 10)} == {"done"}
        assert {bench.terminal(f"bad-{number}").type for number in range(100)} == {"error"}
    assert bench.is_at_rest()
