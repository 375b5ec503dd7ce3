"""When a follower pauses, goes on and gives up, with a clock of the test's own and no server."""

from typing import Any

import pytest
from tokenmill.follow import OUTAGE_S, Follower, Pause, Read
from tokenmill.wire.errors import UnavailableError
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


def follow(clock: Clock, **more: Any) -> Follower:
    return Follower(Keys(), "q-1", is_known=True, clock=clock, **more)


def last_read(effect: object) -> str:
    assert isinstance(effect, Read)
    return str(effect.commands[0][-1])


def test_a_server_that_never_answered_is_not_waited_for() -> None:
    steps = follow(Clock()).steps()
    next(steps)
    with pytest.raises(UnavailableError):
        steps.send(AWAY)


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


def test_a_timeout_bounds_the_blocking_read_and_never_blocks_for_ever() -> None:
    clock = Clock()
    for timeout_s, block_ms in ((0.0, 1), (0.25, 250), (3600.0, 5000)):
        effect = next(follow(clock, timeout_s=timeout_s).steps())
        assert isinstance(effect, Read)
        command = effect.commands[0]
        assert command[command.index("BLOCK") + 1] == block_ms
