"""Round trips over one connection: how often one is tried, and what becomes of one that nobody waits for."""

import pytest
from tokenmill.wire.errors import UnavailableError
from tokenmill.wire.store import Call, Script, Store, connect

from tests.support.faults import FailOnce, Moment, sabotage

PING = [("PING",)]


class FailAlways:
    """Every call fails before it is sent."""

    num_calls = 0

    def next_fault(self) -> Moment:
        self.num_calls += 1
        return "before"


@pytest.mark.parametrize("retries", [0, 2])
def test_a_call_is_tried_once_and_then_as_often_as_its_client_says(redis_url: str, retries: int) -> None:
    plan = FailAlways()
    store = Store(sabotage(connect(redis_url, retries=retries), plan))
    with pytest.raises(UnavailableError, match="on purpose"):
        store.send(PING)
    assert plan.num_calls == 1 + retries
    store.close()


def test_a_lost_connection_is_made_again_where_retries_are_allowed(redis_url: str) -> None:
    store = Store(sabotage(connect(redis_url, retries=1), FailOnce(2, "after")))
    assert [store.send(PING), store.send(PING)] == [[b"PONG"], [b"PONG"]]
    store.close()


def _add(key: str, value: int) -> Call[int]:
    return Call(_Add("add"), (key,), (value,), int)


class _Add(Script):
    text = "return redis.call('INCRBY', KEYS[1], ARGV[1])"  # the server has never seen it


def test_calls_that_were_begun_are_answered_later_and_others_meanwhile(store: Store, queue: str) -> None:
    key = f"tm:{{{queue}.0}}:sum"
    begun = store.begin([_add(key, 1), _add(key, 2)])
    assert store.send(PING) == [b"PONG"]
    assert begun.outcomes() == [1, 3]
    assert store.attempt([_add(key, 3)]) == [6]
    store.send([("DEL", key)])


def test_what_was_begun_and_abandoned_answers_nobody(store: Store) -> None:
    begun = store.begin([_add("tm:{x.0}:sum", 1)])
    begun.abandon()
    assert store.send(PING) == [b"PONG"]
    store.send([("DEL", "tm:{x.0}:sum")])


def test_a_connection_lost_under_what_was_begun_says_so(redis_url: str) -> None:
    store = Store(sabotage(connect(redis_url, retries=0), FailOnce(1, "after")))
    begun = store.begin([_add("tm:{x.0}:sum", 1)])
    with pytest.raises(UnavailableError, match="on purpose"):
        begun.outcomes()
    store.send([("DEL", "tm:{x.0}:sum")])
    store.close()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("at", [1, 2, 3, 4, 99])
def test_batches_are_answered_in_order_wherever_the_connection_is_lost(redis_url: str, at: int, moment: Moment) -> None:
    plan = FailOnce(at, moment)
    store = Store(sabotage(connect(redis_url, retries=0), plan))
    batches = [[_echo(f"{number}-{part}") for part in range(3)] for number in range(4)]
    answers = list(store.pipeline_each(batches))
    assert answers == [[f"{number}-{part}".encode() for part in range(3)] for number in range(4)]
    assert plan.num_calls >= 4
    assert store.send(PING) == [b"PONG"]
    store.close()


def test_batches_that_nobody_reads_to_the_end_answer_nobody_else(store: Store) -> None:
    answers = store.pipeline_each([[_echo("a")], [_echo("b")], [_echo("c")]])
    assert next(answers) == [b"a"]
    del answers
    assert store.send(PING) == [b"PONG"]


def test_batches_without_a_server_say_so() -> None:
    store = Store(connect("redis://127.0.0.1:1/0", retries=0))
    with pytest.raises(UnavailableError, match="no answer from"):
        list(store.pipeline_each([[_echo("a")]]))


def _echo(word: str) -> Call[bytes]:
    return Call(_Echo("echo"), (), (word,), bytes)


class _Echo(Script):
    text = "return ARGV[1]"
