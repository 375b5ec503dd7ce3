"""What a step may hold, so that its time keeps to the targets; on machines whose law is known."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill_worker.engine.api import SamplingParams
from tokenmill_worker.engine.cost_model import CostModel, StepShape, fit
from tokenmill_worker.engine.pacer import LEAST_AIM, Limits, Load, Pacer, Targets

from benchmarks.open_loop import Phase, Run, arrivals, drive
from tests.engine.harness import finish, make_engine, make_request
from tests.engine.test_cost_model import CALIBRATION
from tests.support.machine import SimulatedClock, SimulatedMachine, simulated_engine, small_cpu

MOST = Limits(512, 64)
CURVE = fit(CALIBRATION, [small_cpu(shape) for shape in CALIBRATION])


def make_pacer(tpot_s: float, ttft_s: float | None = None) -> Pacer:
    return Pacer(CostModel(CURVE), Targets(tpot_s, ttft_s))


loads = st.builds(
    lambda rows, context, start: Load(rows, rows * context, prefill_start=start),
    st.integers(0, 64),
    st.integers(1, 2000),
    st.integers(0, 4000),
)


@given(loads, st.floats(0.001, 2.0))
def test_limits_have_room_for_every_decoding_row_and_for_something(load: Load, tpot_s: float) -> None:
    limits = make_pacer(tpot_s).choose(load, MOST)
    assert load.num_decoding <= limits.num_tokens <= MOST.num_tokens
    assert limits.num_tokens >= 1
    assert 1 <= limits.num_rows <= MOST.num_rows


@given(loads, st.floats(0.03, 2.0))
def test_prompts_get_no_more_than_the_target_leaves(load: Load, tpot_s: float) -> None:
    limits = make_pacer(tpot_s).choose(load, MOST)
    num_new = limits.num_tokens - load.num_decoding
    if load.num_decoding and num_new:
        pairs = num_new * load.prefill_start + num_new * num_new // 2
        step = StepShape(limits.num_tokens, load.num_decoding + 1, load.num_context, pairs)
        assert CURVE.predict(step) <= tpot_s * 1.001


@given(loads, st.floats(0.001, 1.0), st.floats(1.0, 3.0))
def test_a_looser_target_never_allows_less(load: Load, tpot_s: float, factor: float) -> None:
    tight, loose = make_pacer(tpot_s).choose(load, MOST), make_pacer(tpot_s * factor).choose(load, MOST)
    assert tight.num_tokens <= loose.num_tokens
    assert tight.num_rows <= loose.num_rows


def test_without_decoding_rows_nobody_waits_for_a_token_so_prompts_get_all() -> None:
    assert make_pacer(0.02).choose(Load(0, 0), MOST).num_tokens == MOST.num_tokens


def test_a_first_token_that_is_about_to_be_late_gets_more_of_a_step_and_a_hopeless_one_does_not() -> None:
    chosen = [
        make_pacer(0.04, 0.5).choose(Load(12, 12 * 200, oldest_s=oldest_s), MOST).num_tokens
        for oldest_s in (0.1, 0.4, 5.0)
    ]
    assert chosen[0] == chosen[2] < chosen[1]


def test_a_target_below_a_single_rows_step_still_lets_one_row_run() -> None:
    limits = make_pacer(0.001).choose(Load(1, 100), MOST)
    assert 1 <= limits.num_rows < 16
    assert limits.num_tokens < 32


def test_too_many_late_steps_lower_the_aim_and_punctual_ones_raise_it_again() -> None:
    pacer, load, shape = make_pacer(0.04), Load(16, 16 * 200), StepShape(16, 16, 3200, 0)
    before = pacer.choose(load, MOST)
    for _ in range(100):
        pacer.observe(shape, 16, 0.01, 0.0)
        pacer.observe(shape, 16, 0.08, 0.0)
    lowered = pacer._aim
    assert LEAST_AIM <= lowered < 0.7
    for _ in range(2000):
        pacer.observe(shape, 16, CURVE.predict(shape), 0.0)
    assert pacer._aim == 1.0
    assert pacer.choose(load, MOST).num_rows == pytest.approx(before.num_rows, abs=2)


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 60.0), st.booleans())
@settings(max_examples=10, deadline=None)
def test_tokens_do_not_depend_on_the_targets(seed: int, tpot_ms: float, has_ttft: bool) -> None:
    rng = random.Random(seed)
    requests = [
        make_request([rng.randrange(32, 120) for _ in range(rng.randrange(1, 90))], request_id=f"r{index}")
        for index in range(10)
    ]
    clock = SimulatedClock()
    paced = make_engine(
        target_tpot_ms=tpot_ms,
        target_ttft_ms=20.0 if has_ttft else None,
        cache_dir="/dev/null/nowhere",
        scheduling_interval=rng.randrange(1, 5),
        runner=SimulatedMachine(clock, seed=seed),
        clock=clock,
    )
    expected = {name: output.token_ids for name, output in finish(make_engine(), *requests).items()}
    assert {name: output.token_ids for name, output in finish(paced, *requests).items()} == expected


# Under a load that changes

LENGTHS = [max(16, min(384, int(random.Random(seed).lognormvariate(4.6, 0.7)))) for seed in range(64)]
PROMPTS = [[32 + (index * 7 + place) % 80 for place in range(50 + index)] for index in range(64)]
LOAD_STEP = [Phase(2.0, 8.0), Phase(6.0, 8.0), Phase(2.0, 8.0)]  # arrivals triple, then fall
TARGET_MS = 30.0
STATIC = [(rows, 64) for rows in (8, 11, 14, 20)]


def served(folder: Path, *, slowness: float = 1.0, **config: object) -> Run:
    """`slowness` since the calibration."""
    clock = SimulatedClock()
    machine = SimulatedMachine(clock, noise=0.08)
    engine = simulated_engine(machine, clock, folder, **config)
    machine.slowness = slowness
    return drive(engine, arrivals(LOAD_STEP, PROMPTS, LENGTHS, seed=0), clock=clock, wait=clock.pass_by)


@pytest.mark.parametrize("slowness", [pytest.param(1.0, marks=pytest.mark.slow), 1.3])
def test_the_target_is_held_under_a_load_step_at_the_throughput_of_the_best_static_setting(
    tmp_path: Path, slowness: float
) -> None:
    paced = served(tmp_path, slowness=slowness, target_tpot_ms=TARGET_MS).figures()
    assert paced["per_token_p95_ms"] <= 1.2 * TARGET_MS
    static = [
        served(tmp_path, slowness=slowness, max_num_seqs=rows, max_num_batched_tokens=tokens).figures()
        for rows, tokens in STATIC
    ]
    holding = [one["tokens_per_s"] for one in static if one["per_token_p95_ms"] <= 1.2 * TARGET_MS]
    assert paced["tokens_per_s"] >= 0.9 * max(holding)


def test_the_decisions_show_in_the_statistics(tmp_path: Path) -> None:
    clock = SimulatedClock()
    engine = simulated_engine(SimulatedMachine(clock), clock, tmp_path, target_tpot_ms=TARGET_MS)
    drive(engine, arrivals([Phase(8.0, 4.0)], PROMPTS, LENGTHS, seed=0), clock=clock, wait=clock.pass_by)
    statistics = engine.statistics()
    assert 0 < statistics.num_batched_tokens_limit <= 512
    assert 0 < statistics.num_rows_limit < 64
    assert statistics.predicted_step_ms == pytest.approx(statistics.observed_step_ms, rel=0.3)


def test_steps_without_prompts_are_told_for_each_doubling_of_rows(tmp_path: Path) -> None:
    def one_row_s(shape: StepShape) -> float:
        return 0.010 + 0.001 * shape.num_samples

    clock = SimulatedClock()
    engine = simulated_engine(SimulatedMachine(clock, one_row_s, noise=0.0), clock, tmp_path)
    prompts = [[1, 2, 3]] * 3
    engine.generate(prompts, SamplingParams(max_tokens=9, ignore_eos=True))
    engine.generate(prompts[:1], SamplingParams(max_tokens=9, ignore_eos=True))
    assert engine.statistics().decode_step_ms == ((1.0, 11.0), (3.0, 13.0))


def test_no_more_is_asked_for_than_the_target_lets_in(tmp_path: Path) -> None:
    clock = SimulatedClock()
    engine = simulated_engine(SimulatedMachine(clock), clock, tmp_path, target_tpot_ms=TARGET_MS)
    for index in range(12):
        engine.add_request(make_request(PROMPTS[index], request_id=str(index)))
    for _ in range(12):
        engine.step()
    limit = engine.statistics().num_rows_limit
    assert engine.capacity().num_rows == max(0, limit - 12)
