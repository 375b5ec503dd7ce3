"""Whole tunings on simulated machines: they find what the machine is good at, and keep their time."""

from functools import cache

import pytest
from tokenmill_worker.tune.budget import Budget
from tokenmill_worker.tune.figures import Figures, Targets
from tokenmill_worker.tune.session import Goal, NothingMeasuredError, Session, Tuning
from tokenmill_worker.tune.space import Point, Space

from tests.tune.machine import Clock, StepTime, memory_then_arithmetic, simulated_loop

SPACE = Space((1, 4, 8, 16, 32, 64, 128), (64, 128, 256, 512), (1, 4, 16))


def nothing(stage: str, point: Point, figures: Figures) -> None:
    """Nobody looks."""


@cache  # the same tuning is looked at from several sides
def tuned(
    goal: Goal | None = None,
    *,
    step_s: StepTime = memory_then_arithmetic,
    noise: float = 0.0,
    seconds: float = 60.0,
) -> tuple[Tuning, Clock]:
    clock = Clock()
    loop = simulated_loop(clock, step_s, noise=noise, deadline_s=seconds)
    session = Session(loop, SPACE, goal or Goal(), Budget(seconds, now=clock.now), tell=nothing)
    return session.run(), clock


def test_a_tuning_finds_the_knee_and_a_setting_as_fast_as_any() -> None:
    found, _ = tuned()
    assert found.knee is not None
    assert found.knee.point.max_num_seqs in {16, 32}  # 32 tokens a step are 21 rows and their newcomers' prompts
    best = max(one.figures.tokens_per_s for one in found.curve)
    assert found.chosen.figures.tokens_per_s > 0.95 * best
    assert found.chosen.point.scheduling_interval == 1
    assert found.num_points > 8


def test_of_settings_that_are_equally_fast_it_does_not_take_the_slowest_to_answer() -> None:
    found, _ = tuned()
    assert found.chosen.point.max_num_seqs < 128


@pytest.mark.parametrize("seconds", [8.0, 60.0])
def test_the_budget_is_kept_on_a_noisy_machine(seconds: float) -> None:
    found, clock = tuned(noise=0.5, seconds=seconds)
    assert clock.now_s < seconds + 2  # a step that is under way, and two of settling
    assert found.chosen.point.max_num_seqs >= 16


def test_a_target_is_held_with_as_much_throughput_as_it_allows() -> None:
    found, _ = tuned(Goal(Targets(tpot_ms=40.0)))
    assert found.is_held
    assert found.chosen.figures.tpot_p95_ms <= 40.0
    assert found.chosen.point.max_num_seqs in {8, 16}
    loose, _ = tuned(Goal(Targets(tpot_ms=4_000.0)))
    assert loose.chosen.figures.tokens_per_s > found.chosen.figures.tokens_per_s


def test_a_target_that_nothing_holds_is_said_to_be_missed() -> None:
    found, _ = tuned(Goal(Targets(tpot_ms=1.0)))
    assert found.is_held is False
    assert found.chosen.figures.tpot_p95_ms == pytest.approx(32, rel=0.2)


def test_static_batches_and_arrivals_are_measured_beside_it() -> None:
    found, _ = tuned()
    assert [one.point.max_num_seqs for one in found.static] == [4, 16, 64]
    at_64 = next(one for one in found.curve if one.point.max_num_seqs == 64)
    assert found.static[-1].figures.tokens_per_s < at_64.figures.tokens_per_s
    assert len(found.open) == 3
    assert found.open[0].figures.ttft_p50_ms < found.open[-1].figures.ttft_p95_ms


def test_under_given_rates_a_setting_is_judged_at_the_highest() -> None:
    found, _ = tuned(Goal(rates=(2.0, 8.0)))
    assert [one.rate for one in found.open] == [2.0, 8.0]
    assert found.chosen.figures.tokens_per_s < 400  # what arrives, not what it could do


def test_too_little_time_for_anything_is_an_error() -> None:
    with pytest.raises(NothingMeasuredError):
        tuned(step_s=lambda num_tokens: 100.0, seconds=10.0)
