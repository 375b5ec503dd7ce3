"""The pure parts of the queue's benchmark: what it reads, sums up and compares."""

import os
import sys
import threading

import pytest

from benchmarks.cpu import parse_stat, process_cpu_s, thread_cpu_s
from benchmarks.queue import PROMPT_LENGTH, find_interpreter, print_figures, ratios, requests
from benchmarks.rivals.common import percentile, timed_ms


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


def test_a_ratio_is_ours_over_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    ours = {"enqueue_per_s": 30_000.0, "end_to_end_per_s": 6_000.0, "round_trip_p50_ms": 1.2}
    theirs = {"rival": "arq", "enqueue_per_s": 3_000.0, "end_to_end_per_s": 2_000.0, "round_trip_p50_ms": 2.4}
    assert ratios(ours, theirs) == {"enqueue_per_s": 10.0, "end_to_end_per_s": 3.0, "round_trip_p50_ms": 0.5}
    print_figures(ours, [theirs])
    assert "arq" in capsys.readouterr().out


def test_the_first_interpreter_that_has_the_package_is_taken() -> None:
    assert find_interpreter("json", [sys.executable]) == sys.executable
    with pytest.raises(SystemExit, match="no_such_package"):
        find_interpreter("no_such_package", [sys.executable])
