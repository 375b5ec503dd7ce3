"""What a person is shown of a run."""

import io

from tokenmill.bulk.progress import LineView, Pacemaker, Tally, choose_view, describe, format_duration


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_pace_is_that_of_the_last_moments_and_skipped_rows_are_no_work() -> None:
    clock = Clock()
    pacemaker = Pacemaker(clock)
    tally = Tally(num_rows=1_000, num_skipped=500)
    assert pacemaker.look(tally).eta_s is None
    clock.now_s += 10
    tally.num_done, tally.completion_tokens = 100, 2_000
    pace = pacemaker.look(tally)
    assert (pace.rows_per_s, pace.tokens_per_s, pace.eta_s) == (10.0, 200.0, 40.0)
    for _ in range(30):  # nothing moves for longer than the window
        clock.now_s += 1
        pace = pacemaker.look(tally)
    assert (pace.rows_per_s, pace.eta_s) == (0.0, None)


def test_a_line_tells_rows_rates_time_left_and_failures() -> None:
    clock = Clock()
    pacemaker = Pacemaker(clock)
    pacemaker.look(Tally(num_rows=64))
    clock.now_s += 2
    tally = Tally(num_rows=64, num_done=12, completion_tokens=420)
    assert describe(tally, pacemaker.look(tally)) == "12/64 rows  6.0 rows/s  210 tok/s  ETA 0:09"
    tally.num_failed = 2
    assert describe(tally, pacemaker.look(tally)).endswith("2 failed")


def test_durations_read_like_a_clock() -> None:
    assert [format_duration(seconds) for seconds in (None, 0, 61, 3_661)] == ["-:--", "0:00", "1:01", "1:01:01"]


def test_plain_lines_come_every_few_seconds_and_at_the_end() -> None:
    clock, stream = Clock(), io.StringIO()
    view = LineView(stream, clock)
    tally = Tally(num_rows=10)
    view.start(tally)
    for _ in range(12):
        clock.now_s += 1
        tally.num_done += 1 if tally.num_done < 10 else 0
        view.update(tally)
    view.stop(tally)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "10 rows"
    assert lines[-1] == "10/10 rows  0.8 rows/s  0 tok/s", "the rates of the whole"
    assert len(lines) == 4


def test_who_sees_only_the_end_is_told_no_rates() -> None:
    stream = io.StringIO()
    view = LineView(stream, Clock())
    view.start(Tally(num_rows=0))
    view.stop(Tally(num_rows=0))
    assert stream.getvalue() == ""
    view.start(Tally(num_rows=4, num_done=2))
    view.stop(Tally(num_rows=4, num_done=2))
    assert stream.getvalue().splitlines() == ["4 rows", "2/4 rows"]


def test_plain_lines_are_rare_while_nothing_happens() -> None:
    clock, stream = Clock(), io.StringIO()
    view = LineView(stream, clock)
    tally = Tally(num_rows=10)
    view.start(tally)
    for _ in range(125):
        clock.now_s += 1
        view.update(tally)
    assert len(stream.getvalue().splitlines()) == 3


def test_what_is_no_terminal_gets_plain_lines() -> None:
    assert isinstance(choose_view(io.StringIO(), can_redraw=False), LineView)
