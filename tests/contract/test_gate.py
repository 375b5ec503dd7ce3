"""What an API key may send: two limits a minute, one a day, shared by every gateway process."""

import itertools

import pytest
from tokenmill.wire.keys import GATE_USE_TTL_S, GateKeys
from tokenmill.wire.store import Admission, GateTransitions, Store

_numbers = itertools.count(1)


@pytest.fixture
def gate() -> GateTransitions:
    return GateTransitions(GateKeys(f"gate-{next(_numbers)}"))


def admit(
    store: Store, gate: GateTransitions, tokens: int = 0, *, rpm: int = 0, tpm: int = 0, tpd: int = 0
) -> Admission:
    return store.run(gate.admit("k", requests_per_minute=rpm, tokens_per_minute=tpm, tokens_per_day=tpd, tokens=tokens))


def test_requests_of_a_minute_are_given_out_and_then_refused_until_one_is_there(
    store: Store, gate: GateTransitions
) -> None:
    left = [admit(store, gate, rpm=3).requests_left for _ in range(3)]
    assert left == [2, 1, 0]
    refused = admit(store, gate, rpm=3)
    assert refused.verdict == "requests"
    assert 0 < refused.retry_ms <= 20_000, "a third of a minute brings the next one"
    assert 40_000 < refused.requests_reset_ms <= 60_000


def test_tokens_of_a_minute_wait_for_as_many_as_are_wanted(store: Store, gate: GateTransitions) -> None:
    assert admit(store, gate, 60, tpm=100).tokens_left == 40
    refused = admit(store, gate, 60, tpm=100)
    assert (refused.verdict, refused.tokens_left) == ("tokens", 40)
    assert 11_000 < refused.retry_ms <= 12_000
    assert admit(store, gate, 40, tpm=100).verdict == "ok", "what is refused is charged nothing"


@pytest.mark.parametrize(("limits", "verdict"), [({"tpm": 10}, "never_minute"), ({"tpd": 10}, "never_day")])
def test_more_than_the_whole_limit_is_told_apart_since_no_waiting_helps(
    store: Store, gate: GateTransitions, limits: dict[str, int], verdict: str
) -> None:
    assert admit(store, gate, 11, **limits).verdict == verdict
    assert admit(store, gate, 10, **limits).verdict == "ok"


def test_a_day_is_used_up_and_what_was_not_needed_comes_back(store: Store, gate: GateTransitions) -> None:
    first = admit(store, gate, 80, tpd=100)
    assert first.used == 80
    assert admit(store, gate, 80, tpd=100).verdict == "day"
    assert store.run(gate.settle("k", difference=-70, day=first.day)) == 10
    assert admit(store, gate, 80, tpd=100).used == 90
    assert store.run(gate.used_today(["k", "unknown"])) == [90, 0]


def test_what_was_admitted_yesterday_is_not_settled_today(store: Store, gate: GateTransitions) -> None:
    admit(store, gate, 80, tpd=100)
    store.run(gate.settle("k", difference=-70, day="19000"))
    assert store.run(gate.used_today(["k"])) == [80]


def test_settling_gives_tokens_of_the_minute_back_but_never_more_than_the_limit(
    store: Store, gate: GateTransitions
) -> None:
    first = admit(store, gate, 100, tpm=100)
    store.run(gate.settle("k", difference=-1_000, day=first.day))
    assert admit(store, gate, 30, tpm=100).tokens_left == 70


def test_every_process_sees_the_same_and_the_count_is_forgotten_in_days(store: Store, gate: GateTransitions) -> None:
    other = GateTransitions(gate.keys)
    assert admit(store, gate, rpm=1).verdict == "ok"
    assert admit(store, other, rpm=1).verdict == "requests"
    assert 0 < store.client.ttl(gate.keys.use("k")) <= GATE_USE_TTL_S


def test_records_are_kept_found_and_listed(store: Store, gate: GateTransitions) -> None:
    store.run(gate.put("a", b"one"))
    store.run(gate.put("b", b"two"))
    assert store.run(gate.find("a")) == b"one"
    assert store.run(gate.find("nobody")) is None
    assert sorted(store.run(gate.all_records())) == [b"one", b"two"]
