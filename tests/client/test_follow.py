"""When a follower pauses, goes on and gives up, with a clock of the test's own and no server."""

from typing import Any

import pytest
from tokenmill.follow import OUTAGE_S, Follower, Pause, Read, Seats
from tokenmill.wire.errors import JobLostError, UnavailableError
from tokenmill.wire.keys import Keys
from tokenmill.wire.messages import Delta, Entry

from tests.support.hands import delta, done

AWAY = UnavailableError("away")


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def streams(*entries: tuple[str, Entry]) -> list[Any]:
    """A reply to XREAD."""
    found = [
        (entry_id.encode(), {k.encode(): v.encode() for k, v in entry.encode().items()}) for entry_id, entry in entries
    ]
    return [[(b"key", found)]]


def follow(clock: Clock, *, is_known: bool = True, **more: Any) -> Follower:
    return Follower(Keys(), "q-1", is_known=is_known, clock=clock, **more)


def last_read(effect: object) -> str:
    assert isinstance(effect, Read)
    return str(effect.commands[0][-1])


def test_a_server_that_never_answered_is_not_waited_for() -> None:
    steps = follow(Clock(), is_known=False).steps()
    next(steps)
    with pytest.raises(UnavailableError):
        steps.send(AWAY)


def test_a_server_that_took_the_request_is_waited_for_from_the_first_read_on() -> None:
    steps = follow(Clock()).steps()
    next(steps)
    assert isinstance(steps.send(AWAY), Pause)


def test_a_request_of_which_something_was_read_is_lost_when_it_is_gone() -> None:
    steps = follow(Clock(), is_known=False).steps()
    next(steps)
    steps.send(streams(("1-0", delta(0, "a", 1))))
    next(steps)
    steps.send([None])
    with pytest.raises(JobLostError):
        steps.send([None, []])


def test_an_outage_is_waited_out_in_doubling_pauses_and_reading_goes_on_after_the_last_entry() -> None:
    steps = follow(Clock()).steps()
    next(steps)
    assert isinstance(steps.send(streams(("1-0", delta(0, "a", 1)))), Delta)
    assert last_read(next(steps)) == "1-0"
    pauses = []
    for _ in range(4):
        effect = steps.send(AWAY)
        assert isinstance(effect, Pause)
        pauses.append(effect.seconds)
        assert last_read(next(steps)) == "1-0"
    assert pauses == [0.05, 0.1, 0.2, 0.4]
    with pytest.raises(StopIteration):
        steps.send(streams(("1-1", done("a", 1))))


def test_a_server_that_stays_away_is_given_up() -> None:
    clock = Clock()
    steps = follow(clock).steps()
    next(steps)
    steps.send(streams(("1-0", delta(0, "a", 1))))
    next(steps)
    steps.send(AWAY)
    next(steps)
    clock.now_s = OUTAGE_S + 1
    with pytest.raises(UnavailableError):
        steps.send(AWAY)


def test_a_timeout_bounds_the_blocking_read() -> None:
    for timeout_s, block_ms in ((0.25, 250), (3600.0, 5000)):
        effect = next(follow(Clock(), timeout_s=timeout_s).steps())
        assert isinstance(effect, Read)
        command = effect.commands[0]
        assert effect.is_blocking
        assert command[command.index("BLOCK") + 1] == block_ms


def test_without_time_the_read_does_not_block_at_all() -> None:
    effect = next(follow(Clock(), timeout_s=0.0).steps())
    assert isinstance(effect, Read)
    assert not effect.is_blocking
    assert "BLOCK" not in effect.commands[0]


def test_who_gets_no_seat_polls_and_takes_one_that_comes_free() -> None:
    seats = Seats(1)
    first, second = follow(Clock(), seats=seats).steps(), follow(Clock(), seats=seats).steps()
    blocking, polling = next(first), next(second)
    assert isinstance(blocking, Read)
    assert isinstance(polling, Read)
    assert (blocking.is_blocking, polling.is_blocking) == (True, False)
    assert isinstance(second.send([None]), Pause)
    first.close()
    taken = next(second)
    assert isinstance(taken, Read)
    assert taken.is_blocking


def test_the_more_poll_the_less_often_each_of_them_does() -> None:
    seats = Seats(0)
    pauses = []
    readers = [follow(Clock(), seats=seats).steps() for _ in range(500)]
    for steps in readers:
        next(steps)
        pause = steps.send([None])
        assert isinstance(pause, Pause)
        pauses.append(pause.seconds)
    assert pauses[0] < pauses[250] < pauses[499]


def test_one_look_is_for_all_who_stand_and_each_gets_what_comes_after_its_own_last_entry() -> None:
    seats, clock = Seats(0), Clock()
    looker, other, late = (
        Follower(Keys(), name, after=after, is_known=True, clock=clock, seats=seats)
        for name, after in (("q-1", "0-0"), ("q-2", "0-0"), ("q-2", "1-0"))
    )
    reading = [follower.steps() for follower in (looker, other, late)]
    for steps in reading:
        next(steps)
        assert isinstance(steps.send([None]), Pause)
    look = next(reading[0])
    assert isinstance(look, Read)
    assert look.commands[0][-4:] == (Keys().result("q-1"), Keys().result("q-2"), "0-0", "0-0")
    (((_, entries),),) = streams(("1-0", delta(0, "a", 1)), ("2-0", delta(1, "b", 2)))
    assert isinstance(reading[0].send([[(Keys().result("q-2").encode(), entries)]]), Pause)
    told = [next(steps) for steps in reading[1:]]
    assert [news.text for news in told if isinstance(news, Delta)] == ["a", "b"]
