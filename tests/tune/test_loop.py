"""The loads, on a machine whose step times are known: what is measured must be what the machine does."""

import pytest
from tokenmill_worker.tune.loop import OutOfTimeError
from tokenmill_worker.tune.space import Point
from tokenmill_worker.tune.window import Step, Window, cost_of_prefill

from tests.tune.machine import Clock, simulated_loop

FAST = Point(16, 512, 1)


def test_a_closed_loop_keeps_every_row_busy_and_measures_the_machines_own_step() -> None:
    loop = simulated_loop(Clock(), lambda num_tokens: 0.010)
    found = loop.closed(FAST, 3.0)
    assert found.token_p50_ms == pytest.approx(10)
    assert found.num_rows == pytest.approx(15.3, abs=0.7)
    assert found.tokens_per_s == pytest.approx(1_600, rel=0.05)
    assert found.ttft_p50_ms == pytest.approx(10)


def test_a_closed_loop_takes_the_time_it_was_given() -> None:
    clock = Clock()
    loop = simulated_loop(clock)
    loop.closed(FAST, 2.0)
    assert clock.now_s == pytest.approx(2.0, abs=0.2)


def test_short_windows_agree_with_a_long_one_although_few_answers_end_in_them() -> None:
    loop = simulated_loop(Clock(), lambda num_tokens: 0.004 + 0.0005 * num_tokens, prompt_tokens="~90")
    long = loop.closed(FAST, 40.0).tokens_per_s
    short = [loop.closed(FAST, 1.5).tokens_per_s for _ in range(12)]
    assert max(abs(rate / long - 1) for rate in short) < 0.1


def test_with_a_longer_interval_newcomers_wait_and_rows_stand_empty() -> None:
    loop = simulated_loop(Clock())
    often, seldom = (loop.closed(Point(16, 512, interval), 10.0) for interval in (1, 16))
    assert seldom.ttft_p50_ms > 3 * often.ttft_p50_ms
    assert seldom.num_rows < often.num_rows
    assert seldom.tokens_per_s < often.tokens_per_s


def test_a_smaller_token_budget_makes_a_token_wait_less_for_others_prompts() -> None:
    loop = simulated_loop(Clock(), prompt_tokens="400", output_tokens="40")
    large, small = (loop.closed(Point(16, tokens, 1), 20.0) for tokens in (1024, 64))
    assert small.token_p99_ms < large.token_p99_ms / 2


def test_an_open_loop_serves_what_arrives_and_its_queue_grows_beyond_what_it_can_do() -> None:
    loop = simulated_loop(Clock(), output_tokens="24")
    light, heavy = (loop.open(FAST, rate, 20.0) for rate in (5.0, 100.0))
    assert light.tokens_per_s == pytest.approx(120, rel=0.3)
    assert light.num_waiting < 3
    assert heavy.num_waiting > 500
    assert heavy.ttft_p95_ms > 50 * light.ttft_p95_ms


def test_a_static_batch_waits_for_its_longest_answer() -> None:
    loop = simulated_loop(Clock(), lambda num_tokens: 0.010, output_tokens="8-200")
    continuous, static = loop.closed(FAST, 5.0), loop.static(FAST, 5.0)
    assert static.tokens_per_s < 0.7 * continuous.tokens_per_s
    assert not loop.engine.has_work()


def test_a_batch_that_cannot_be_filled_in_time_is_not_measured() -> None:
    loop = simulated_loop(Clock(), lambda num_tokens: 60.0, deadline_s=100.0)
    with pytest.raises(OutOfTimeError):
        loop.closed(FAST, 1.0)


def test_limits_change_while_requests_are_under_way() -> None:
    loop = simulated_loop(Clock())
    for rows in (1, 32, 4, 64, 2):
        found = loop.closed(Point(rows, 512, 1), 1.0)
        assert found.num_rows == pytest.approx(rows, rel=0.15)
        loop.engine.check_integrity()


def test_the_cost_of_prefill_is_read_off_the_steps() -> None:
    steps = [Step(0.01 + 0.001 * tokens, tokens, 8) for tokens in (0, 0, 10, 0, 30)]
    assert cost_of_prefill(steps) == pytest.approx(0.001)
    assert cost_of_prefill(steps[2:]) == pytest.approx(0.001)
    assert cost_of_prefill(steps[:1]) == 0
    assert cost_of_prefill([Step(0.01, 5, 8)] * 3) == 0


def test_a_neighbour_that_takes_the_processor_for_a_moment_changes_nothing() -> None:
    window = Window()
    window.steps = [Step(0.01 + 0.001 * tokens, tokens, 8) for tokens in (0, 10, 0, 0, 10, 0, 20)]
    window.num_output_tokens = 56
    quiet_s = window.balanced_seconds(40 / 56)
    window.steps[2] = Step(0.9, 0, 8)
    window.steps[4] = Step(0.5, 10, 8)
    assert quiet_s == pytest.approx(7 * 0.01 + 0.04)
    assert window.balanced_seconds(40 / 56) == pytest.approx(quiet_s)


def test_a_window_that_saw_no_newcomer_is_charged_for_those_it_should_have_seen() -> None:
    window = Window()
    window.steps = [Step(0.01 + 0.001 * tokens, tokens, 8) for tokens in (0, 0, 10, 0)]
    window.num_output_tokens = 32
    assert window.balanced_seconds(10 / 32) == pytest.approx(0.05)
    assert window.balanced_seconds(20 / 32) == pytest.approx(0.06)
