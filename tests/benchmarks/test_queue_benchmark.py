"""The pure parts of the queue's benchmark: what it reads, sums up and compares."""

import os
import sys
import threading
from typing import Any, cast

import pytest

from benchmarks.cpu import parse_stat, process_cpu_s, thread_cpu_s
from benchmarks.queue import PROMPT_LENGTH, print_figures, requests
from benchmarks.rivals.common import Rival, carry_out, percentile, timed_ms
from benchmarks.rivals.process import find_interpreter
from benchmarks.turns import in_turn, paired_ratios


def test_a_stat_line_is_read_whatever_the_thread_is_called() -> None:
    text = "7 (a (b) c) S 1 1 1 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 1 2 3"
    assert parse_stat(text) == ("a (b) c", 300 / os.sysconf("SC_CLK_TCK"))


def test_this_process_and_its_threads_have_used_some_time() -> None:
    assert threading.active_count() >= 1
    assert process_cpu_s(os.getpid()) > 0
    assert sum(thread_cpu_s(os.getpid()).values()) > 0


def test_prompts_have_one_length_and_are_all_different() -> None:
    prompts = [str(fields["prompt"]) for fields in requests(50, first=99_999_990)]
    assert {len(prompt) for prompt in prompts} == {PROMPT_LENGTH}
    assert len(set(prompts)) == 50


def test_percentiles_lie_between_neighbours() -> None:
    values = [float(value) for value in range(101)]
    assert [percentile(values, percent) for percent in (50, 95, 99)] == [50, 95, 99]


def test_the_warm_up_is_not_counted() -> None:
    calls: list[int] = []
    assert len(timed_ms(lambda: calls.append(1), 20)) == 20
    assert len(calls) == 22


class Recorded:
    """A contender that writes down its turns; each round it is a tenth slower."""

    def __init__(self, name: str, turns: list[str], *, speed: float) -> None:
        self.name = name
        self._turns = turns
        self._speed = speed

    def round_trips(self, num: int) -> list[float]:
        self._turns.append(f"{self.name} {num} trips")
        self._speed *= 0.9
        return [1 / self._speed] * num

    def end_to_end(self, num: int) -> dict[str, float]:
        self._turns.append(f"{self.name} {num} jobs")
        return {"end_to_end_per_s": 1000 * self._speed}


def test_contenders_take_turns_and_do_the_same_work() -> None:
    turns: list[str] = []
    contenders = [Recorded("a", turns, speed=1.0), Recorded("b", turns, speed=1.0)]
    in_turn(contenders, num_rounds=2, num_requests=30, num_round_trips=3)
    assert turns[:4] == ["a 3 trips", "b 3 trips", "a 30 jobs", "b 30 jobs"]
    assert turns[4:] == ["b 3 trips", "a 3 trips", "b 30 jobs", "a 30 jobs"]


def test_drift_that_falls_on_both_leaves_the_ratio_as_it_is() -> None:
    contenders = [Recorded("ours", [], speed=3.0), Recorded("theirs", [], speed=1.5)]
    ours, theirs = in_turn(contenders, num_rounds=4, num_requests=1, num_round_trips=2)
    assert ours.column("end_to_end_per_s")[0] > ours.column("end_to_end_per_s")[3]
    assert paired_ratios(ours, theirs) == {"end_to_end_per_s": 2.0, "round_trip_p50_ms": 0.5}


def test_a_table_names_the_rival_and_how_it_compares(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = {"enqueue_per_s": 3_000.0, "ours_over_theirs": {"enqueue_per_s": 10.0}}
    print_figures({"enqueue_per_s": 30_000.0}, {"arq": theirs})
    assert "arq" in (shown := capsys.readouterr().out)
    assert "10.000" in shown


def test_an_order_is_carried_out_and_answered() -> None:
    rival = Rival("none", "none", [], cast("Any", None), lambda num: [], lambda: None)
    assert len(cast("list[float]", carry_out(rival, "round_trips", "7"))) == 7


def test_the_first_interpreter_that_has_the_package_is_taken() -> None:
    assert find_interpreter("json", [sys.executable]) == sys.executable
    with pytest.raises(SystemExit, match="no_such_package"):
        find_interpreter("no_such_package", [sys.executable])
