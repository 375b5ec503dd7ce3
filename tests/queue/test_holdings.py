"""What a worker holds, what of it must leave, and how the loop hears of it."""

import threading

from tokenmill.wire.keys import Lane
from tokenmill_worker.queue.holdings import Holdings

from tests.queue.builders import tenure


class Clock:
    now_ms = 0.0

    def __call__(self) -> float:
        return self.now_ms


def test_a_tenure_is_held_until_it_is_let_go() -> None:
    holdings, held = Holdings(Clock()), tenure("q-1")
    holdings.hold(held)
    assert holdings.holds(held)
    assert holdings.entries() == {(Lane.NORMAL, "1-0")}
    holdings.let_go(held)
    assert not holdings.holds(held)
    assert not len(holdings)


def test_what_is_fenced_is_told_to_the_loop_once() -> None:
    holdings, held = Holdings(Clock()), tenure("q-1")
    holdings.hold(held)
    holdings.fence(held)
    assert not holdings.holds(held)
    assert holdings.take_fenced() == ["q-1"]
    assert holdings.take_fenced() == []


def test_an_old_tenure_neither_fences_nor_lets_go_a_new_one() -> None:
    holdings, old, new = Holdings(Clock()), tenure("q-1", fence=1), tenure("q-1", fence=2)
    holdings.hold(old)
    holdings.hold(new)
    assert holdings.take_fenced() == ["q-1"]
    holdings.fence(old)
    holdings.let_go(old)
    assert holdings.holds(new)
    assert holdings.take_fenced() == []


def test_losing_the_lease_fences_everything() -> None:
    holdings = Holdings(Clock())
    for request_id in ("q-1", "q-2"):
        holdings.hold(tenure(request_id))
    holdings.fence_all()
    assert sorted(holdings.take_fenced()) == ["q-1", "q-2"]
    assert not len(holdings)


def test_a_cancel_is_told_until_the_request_is_let_go() -> None:
    """So that one which comes before its request is admitted still meets it in the engine."""
    holdings, held = Holdings(Clock()), tenure("q-1")
    holdings.hold(held)
    holdings.cancel(["q-1", "unknown"])
    assert holdings.endings() == holdings.endings() == [("q-1", "cancelled")]
    holdings.let_go(held)
    assert holdings.endings() == []


def test_a_deadline_ends_its_request_and_no_other() -> None:
    clock = Clock()
    holdings = Holdings(clock)
    holdings.hold(tenure("late", deadline_ms=100.0))
    holdings.hold(tenure("later", deadline_ms=200.0))
    holdings.hold(tenure("patient"))
    clock.now_ms = 150.0
    assert holdings.endings() == [("late", "expired")]


def test_a_deadline_of_an_earlier_tenure_does_not_end_the_next_one() -> None:
    clock = Clock()
    holdings, old = Holdings(clock), tenure("q-1", deadline_ms=100.0)
    holdings.hold(old)
    holdings.let_go(old)
    holdings.hold(tenure("q-1", fence=2, deadline_ms=300.0))
    clock.now_ms = 150.0
    assert holdings.endings() == []


def test_the_first_reason_to_end_is_the_one_told() -> None:
    clock = Clock()
    holdings = Holdings(clock)
    holdings.hold(tenure("q-1", deadline_ms=100.0))
    holdings.cancel(["q-1"])
    clock.now_ms = 150.0
    assert holdings.endings() == [("q-1", "cancelled")]


def test_who_waits_for_a_parting_hears_of_the_next_one() -> None:
    holdings, heard = Holdings(Clock()), []
    waiting = threading.Thread(target=lambda: heard.append(holdings.wait_parting(20.0)))
    waiting.start()
    while waiting.is_alive():  # it may not wait yet when it is told
        holdings.part()
        waiting.join(0.01)
    assert heard == [True]
    assert not holdings.wait_parting(0.001)
