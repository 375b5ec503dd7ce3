"""How far the reader runs ahead of the engine, and what the engine gets."""

import threading

import pytest
from tokenmill_worker.engine.api import Capacity
from tokenmill_worker.queue.admission import Admission
from tokenmill_worker.queue.ready import FETCH_MAX, READY_MAX, ReadyBuffer

from tests.queue.builders import admission, tenure
from tests.support.waiting import wait_until

FULL = Capacity(0, 0)


@pytest.fixture
def ready() -> ReadyBuffer:
    return ReadyBuffer(lambda admission: True)


def one(request_id: str = "q", *, num_tokens: int = 3, n: int = 1) -> Admission:
    return admission(tenure(request_id), num_prompt_tokens=num_tokens, n=n)


def ids(admissions: list[Admission]) -> list[str]:
    return [admission.request.request_id for admission in admissions]


def test_the_engine_gets_what_fits_into_its_rows_in_order_of_arrival(ready: ReadyBuffer) -> None:
    for number in range(4):
        ready.put(one(f"q-{number}"))
    assert ids(ready.take(Capacity(3, 100), timeout_s=None)) == ["q-0", "q-1", "q-2"]
    assert ids(ready.take(Capacity(3, 100), timeout_s=None)) == ["q-3"]


def test_the_engine_gets_what_fits_into_its_pages(ready: ReadyBuffer) -> None:
    for number in range(4):
        ready.put(one(f"q-{number}", num_tokens=40))
    assert len(ready.take(Capacity(8, 100), timeout_s=None)) == 2


def test_several_choices_take_several_rows(ready: ReadyBuffer) -> None:
    ready.put(one("q-0", n=3))
    ready.put(one("q-1"))
    assert ids(ready.take(Capacity(3, 100), timeout_s=None)) == ["q-0"]


def test_an_engine_with_nothing_to_do_gets_the_first_in_any_case(ready: ReadyBuffer) -> None:
    ready.put(one(num_tokens=500))
    assert len(ready.take(Capacity(8, 100), timeout_s=None)) == 0
    assert len(ready.take(Capacity(8, 100), timeout_s=1.0)) == 1


def test_as_much_may_be_fetched_as_fits_and_a_few_more(ready: ReadyBuffer) -> None:
    ready.take(Capacity(2, 100), timeout_s=None)
    assert ready.room() == READY_MAX
    for _ in range(2):
        ready.put(one())
    assert ready.room() == READY_MAX
    for _ in range(READY_MAX):
        ready.put(one())
    assert ready.room() == 0


def test_room_is_made_for_as_many_as_the_engine_will_take(ready: ReadyBuffer) -> None:
    ready.put(one(num_tokens=10))
    ready.take(Capacity(21, 10_000), timeout_s=None)
    assert ready.room() == 20 + READY_MAX  # by rows
    ready.take(Capacity(21, 50), timeout_s=None)
    assert ready.room() == 5 + READY_MAX  # by tokens, if they are like those before
    ready.take(Capacity(1_000, 1_000_000), timeout_s=None)
    assert ready.room() == FETCH_MAX


def test_a_full_engine_leaves_room_for_a_few(ready: ReadyBuffer) -> None:
    ready.take(FULL, timeout_s=None)
    for _ in range(3):
        ready.put(one())
    assert ready.room() == READY_MAX - 3


def test_what_is_not_ours_any_more_is_passed_over() -> None:
    lost: set[str] = {"q-0"}
    ready = ReadyBuffer(lambda admission: admission.request.request_id not in lost)
    ready.put(one("q-0"))
    ready.put(one("q-1"))
    assert ids(ready.take(Capacity(8, 100), timeout_s=None)) == ["q-1"]


def test_who_waits_for_a_request_is_woken_by_it(ready: ReadyBuffer) -> None:
    taken: list[Admission] = []
    waiter = threading.Thread(target=lambda: taken.extend(ready.take(Capacity(8, 100), timeout_s=20.0)))
    waiter.start()
    ready.put(one())
    wait_until(lambda: taken, description="the waiter is woken")
    waiter.join()


def test_who_waits_for_room_is_woken_by_the_engine(ready: ReadyBuffer) -> None:
    ready.take(FULL, timeout_s=None)
    for _ in range(READY_MAX):
        ready.put(one())
    rooms: list[int] = []
    waiter = threading.Thread(target=lambda: rooms.append(ready.wait_for_room(4, timeout_s=20.0)))
    waiter.start()
    ready.take(Capacity(4, 100), timeout_s=None)
    wait_until(lambda: rooms, description="the waiter is woken")
    waiter.join()
    assert rooms[0] >= 4


def test_closing_ends_every_wait(ready: ReadyBuffer) -> None:
    ready.close()
    assert ready.take(Capacity(8, 100), timeout_s=20.0) == []
    ready.wait_for_room(READY_MAX + 1, timeout_s=20.0)


def test_what_is_on_its_way_has_its_room_already(ready: ReadyBuffer) -> None:
    ready.put(one())
    ready.take(Capacity(40, 10_000), timeout_s=None)
    room = ready.room()
    assert ready.room(num_coming=30) == room - 30
    assert ready.wait_for_room(room, timeout_s=0.0, num_coming=1) == room - 1
