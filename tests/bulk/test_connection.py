"""A run's requests on a real server: every one is answered once, whatever happened to it."""

from collections.abc import Iterator

import pytest
from tokenmill.bulk import connection
from tokenmill.bulk.connection import QueueConnection
from tokenmill.bulk.planner import OutgoingRow
from tokenmill.bulk.rows import Row
from tokenmill.wire.errors import UnavailableError
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.store import BeginReply, Store, Submission

from tests.support.hands import Hands, delta, done, failed, hash_fields

RUN = "run-1"


def row(name: str, *, attempt: int = 0) -> OutgoingRow:
    fields = {"prompt": name, "max_tokens": 2, "group": RUN, "priority": "bulk", "stream": "final"}
    first = OutgoingRow(Row(1, {"q": name}), name, Submission.build(f"{RUN}:{name}", fields))
    return first.again() if attempt else first


@pytest.fixture
def hands(store: Store, keys: Keys) -> Hands:
    """Plays the worker."""
    return Hands(store, keys)


@pytest.fixture
def opened(redis_url: str, queue: str) -> Iterator[QueueConnection]:
    with QueueConnection(redis_url, queue, group=RUN) as opened:
        yield opened


def begin_all(hands: Hands) -> list[BeginReply]:
    begun = [hands.begin(delivery.claim())[0] for delivery in hands.fetch(Lane.BULK)]
    return [job for job in begun if job.status == "begun"]


def answer(hands: Hands, job: BeginReply, text: str = "ok") -> None:
    hands.finish(job, done(text, 2), delta(0, text, 7, 8))


def answer_next(hands: Hands) -> None:
    (job,) = begin_all(hands)
    answer(hands, job)


def fail_next(hands: Hands) -> None:
    (job,) = begin_all(hands)
    hands.finish(job, failed("too_long", "the prompt is too long"), state="failed")


def test_each_request_is_answered_once_in_the_order_of_finishing(opened: QueueConnection, hands: Hands) -> None:
    assert opened.send([row("a"), row("b")]) == ["taken", "taken"]
    assert opened.wait(0.01) == []
    for job in reversed(begin_all(hands)):
        answer(hands, job)
    answers = opened.wait(5)
    assert [each.request_id for each in answers] == ["run-1:b", "run-1:a"]
    assert (answers[0].text, answers[0].token_ids, answers[0].error) == ("ok", [7, 8], None)
    assert opened.wait(0.01) == []


def test_a_failed_request_is_answered_with_its_reason(opened: QueueConnection, hands: Hands) -> None:
    opened.send([row("a")])
    fail_next(hands)
    (told,) = opened.wait(5)
    assert told.error == ("too_long", "the prompt is too long")


def test_a_cancelled_request_is_no_finished_row(opened: QueueConnection, hands: Hands) -> None:
    opened.send([row("a")])
    hands.cancel("run-1:a")
    (told,) = opened.wait(5)
    assert told.error == ("cancelled", "the request was cancelled")


def test_what_a_killed_run_left_finished_is_read_and_not_done_again(
    redis_url: str, queue: str, opened: QueueConnection, hands: Hands
) -> None:
    opened.send([row("a"), row("b")])
    first, second = begin_all(hands)
    answer(hands, first, "early")
    with QueueConnection(redis_url, queue, group=RUN) as again:
        assert again.send([row("a"), row("b")]) == ["taken", "taken"]
        assert [each.text for each in again.wait(5)] == ["early"]
        answer(hands, second, "late")
        assert [each.text for each in again.wait(5)] == ["late"]
    assert hands.fetch(Lane.BULK) == []


def test_an_id_that_failed_before_is_spent_and_the_next_one_is_free(opened: QueueConnection, hands: Hands) -> None:
    opened.send([row("a")])
    fail_next(hands)
    opened.wait(5)
    assert opened.send([row("a")]) == ["spent"]
    assert opened.send([row("a", attempt=1)]) == ["taken"]


def test_a_request_that_the_server_lost_is_sent_again(
    opened: QueueConnection, hands: Hands, store: Store, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.send([row("a")])
    store.send([("DEL", keys.job("run-1:a"))])
    monkeypatch.setattr(connection, "SILENCE_S", 0.0)
    assert opened.wait(0.01) == []
    answer_next(hands)
    assert [each.request_id for each in opened.wait(5)] == ["run-1:a"]


def test_a_final_word_that_the_fan_in_did_not_tell_is_found_by_looking(
    opened: QueueConnection, hands: Hands, store: Store, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.send([row("a")])
    answer_next(hands)
    store.send([("DEL", keys.group_done(RUN))])
    monkeypatch.setattr(connection, "SILENCE_S", 0.0)
    assert [each.text for each in opened.wait(0.01)] == ["ok"]


def test_many_rows_go_in_calls_of_the_size_that_the_server_allows(opened: QueueConnection, hands: Hands) -> None:
    rows = [row(f"r{number}") for number in range(250)]
    assert set(opened.send(rows)) == {"taken"}
    while jobs := begin_all(hands):
        for job in jobs:
            answer(hands, job)
    assert {each.request_id for each in opened.wait(5)} == {each.request_id for each in rows}


def test_forgotten_results_leave_the_server_soon(
    opened: QueueConnection, hands: Hands, store: Store, keys: Keys
) -> None:
    opened.send([row("a")])
    answer_next(hands)
    opened.wait(5)
    opened.forget(["run-1:a"])
    ttls = store.send([("TTL", keys.job("run-1:a")), ("TTL", keys.result("run-1:a"))])
    assert all(0 < ttl <= connection.FORGET_AFTER_S for ttl in ttls)
    assert hash_fields(store, keys.job("run-1:a"))["state"] == "done"


def test_a_server_that_is_away_too_long_ends_the_run(opened: QueueConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "OUTAGE_S", 0.0)
    monkeypatch.setattr(connection, "RETRY_INTERVAL_S", 0.0)

    def refuse(self: Store, call: object) -> object:
        raise UnavailableError("gone")

    monkeypatch.setattr(Store, "run", refuse)
    with pytest.raises(UnavailableError, match="gone"):
        opened.send([row("a")])
