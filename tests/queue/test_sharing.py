"""One ready buffer for several readers, and the gate through which they begin requests."""

import threading

from tokenmill.wire.keys import Lane
from tokenmill_worker.engine.api import Capacity, EngineRequest, SamplingParams
from tokenmill_worker.queue.admission import Admission, Tenure
from tokenmill_worker.queue.gate import Gate
from tokenmill_worker.queue.holdings import Holdings
from tokenmill_worker.queue.ready import READY_MAX
from tokenmill_worker.queue.sharing import Share, SharedReady

from tests.support.waiting import wait_until

NUM_READERS = 3
NEVER = threading.Event()


def admission(number: int = 0) -> Admission:
    name = f"q-{number}"
    tenure = Tenure(
        worker="w-1",
        lane=Lane.NORMAL,
        entry_id=f"{number}-0",
        request_id=name,
        fence=1,
        accepted_ms=0.0,
        begun_ms=0.0,
    )
    return Admission(
        tenure=tenure, request=EngineRequest(request_id=name, prompt_token_ids=[1], params=SamplingParams())
    )


def shared() -> tuple[SharedReady, list[Share]]:
    ready = SharedReady(lambda admission: True, NUM_READERS)
    gate = Gate([])
    return ready, [Share(ready, gate) for _ in range(NUM_READERS)]


def test_each_reader_gets_its_part_and_what_one_was_granted_no_other_gets() -> None:
    ready, (first, second, third) = shared()
    granted = [share.wait_for_room(2, timeout_s=0.0) for share in (first, second, third)]
    assert granted[0] == READY_MAX // NUM_READERS == 2
    assert sum(granted) <= READY_MAX
    assert ready.room() == READY_MAX - sum(granted)


def test_what_is_not_used_of_a_grant_is_free_again_when_its_reader_comes_back_or_rests() -> None:
    ready, (first, second, _) = shared()
    assert first.wait_for_room(4, timeout_s=0.0) == 4
    first.put(admission())
    assert ready.room() == READY_MAX - 4
    first.give_back()
    assert ready.room() == READY_MAX - 1
    assert second.wait_for_room(4, timeout_s=0.0) == 4
    assert second.wait_for_room(4, timeout_s=0.0) == 4  # of its own, again


def test_readers_wait_for_room_in_the_order_in_which_they_came() -> None:
    ready, (first, second, third) = shared()
    for number in range(READY_MAX):
        first.put(admission(number))
    first.give_back()
    served: list[str] = []

    def wait(name: str, share: Share) -> None:
        if share.wait_for_room(4, timeout_s=20.0) >= 4:
            served.append(name)

    threads = [threading.Thread(target=wait, args=pair) for pair in (("second", second), ("third", third))]
    for number, thread in enumerate(threads, 1):
        thread.start()
        wait_until(lambda number=number: len(ready._waiting) == number, description="it waits")  # type: ignore[misc]  # bound at once
    ready.take(Capacity(READY_MAX, 1_000), timeout_s=None)
    for thread in threads:
        thread.join(20.0)
    assert served == ["second", "third"]


def test_the_engine_stops_waiting_when_the_last_reader_has_closed() -> None:
    ready, shares = shared()
    for share in shares[:-1]:
        share.close()
        share.close()
    assert not ready._is_closed
    shares[-1].close()
    assert ready.take(Capacity(1, 1), timeout_s=20.0) == []


def test_who_is_alone_begins_and_nobody_else_does() -> None:
    holdings = [Holdings(lambda: 0.0), Holdings(lambda: 0.0)]
    gate = Gate(holdings)
    begun = threading.Event()

    def begin() -> None:
        with gate.beginning():
            begun.set()

    other = threading.Thread(target=begin)
    with gate.alone(NEVER) as is_alone:
        assert is_alone
        other.start()
        with gate.beginning():
            assert gate.wait_open(0.0)
        assert not begun.is_set()
    other.join(20.0)
    assert begun.is_set()


def test_nobody_is_alone_while_any_partition_holds_something() -> None:
    holdings = [Holdings(lambda: 0.0), Holdings(lambda: 0.0)]
    gate, tenure = Gate(holdings), admission().tenure
    holdings[1].hold(tenure)
    assert not gate.is_idle
    outcome: list[bool] = []

    def be_alone() -> None:
        with gate.alone(NEVER) as is_alone:
            outcome.append(is_alone)

    waiting = threading.Thread(target=be_alone)
    waiting.start()
    wait_until(lambda: not gate.wait_open(0.0), description="it waits")
    assert outcome == []
    holdings[1].let_go(tenure)
    waiting.join(20.0)
    assert outcome == [True]
    assert gate.is_idle


def test_a_stop_ends_the_wait_to_be_alone() -> None:
    holdings = Holdings(lambda: 0.0)
    holdings.hold(admission().tenure)
    stopping = threading.Event()
    stopping.set()
    gate = Gate([holdings])
    with gate.alone(stopping) as is_alone:
        assert not is_alone
    assert gate.wait_open(0.0)
