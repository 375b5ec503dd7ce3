"""How many rows go out: enough for the workers that are there, and no more."""

from tokenmill.bulk.window import MAX_BYTES, MAX_ROWS, MIN_ROWS, UNKNOWN_ROWS, Window


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def looked(num_slots: int, *, rows_per_s: float = 0.0) -> int:
    clock = Clock()
    window = Window(clock=clock)
    window.look(num_slots=num_slots, num_settled=0)
    clock.now_s += 10.0
    window.look(num_slots=num_slots, num_settled=round(10 * rows_per_s))
    return window.num_rows


def test_each_slot_of_the_fleet_has_a_row_and_one_behind_it() -> None:
    assert looked(256) == 512


def test_a_fleet_that_is_faster_than_we_look_gets_more() -> None:
    assert looked(64, rows_per_s=4_000) == 1_000


def test_it_is_bounded_both_ways() -> None:
    assert looked(1) == MIN_ROWS
    assert looked(10**6) == MAX_ROWS


def test_it_follows_workers_that_join_and_leave() -> None:
    window = Window(clock=Clock())
    sizes = []
    for num_slots in (0, 64, 192, 64, 0):
        window.look(num_slots=num_slots, num_settled=0)
        sizes.append(window.num_rows)
    assert sizes == [UNKNOWN_ROWS, 128, 384, 128, UNKNOWN_ROWS]


def test_looks_are_made_now_and_then() -> None:
    clock = Clock()
    window = Window(clock=clock)
    assert window.is_look_due()
    window.look(num_slots=64, num_settled=0)
    assert not window.is_look_due()
    clock.now_s += 10.0
    assert window.is_look_due()


def test_a_size_that_is_given_stays() -> None:
    window = Window(7)
    assert not window.is_look_due()
    assert not window.is_full(6, 0)
    assert window.is_full(7, 0)


def test_prompts_in_flight_are_bounded_in_bytes_but_one_row_always_goes() -> None:
    window = Window(1_000)
    assert window.is_full(1, MAX_BYTES)
    assert not window.is_full(0, MAX_BYTES)
