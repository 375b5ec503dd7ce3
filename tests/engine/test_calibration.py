"""Measuring a runner at the start: it takes little, leaves nothing, and happens once."""

import json
from pathlib import Path
from statistics import median

import pytest
from tokenmill_worker.engine import calibration
from tokenmill_worker.engine.api import EngineConfig
from tokenmill_worker.engine.cost_model import CostCurve
from tokenmill_worker.engine.echo import EchoRunner
from tokenmill_worker.engine.engine import Engine

from tests.engine.harness import Spy, finish, make_request
from tests.support.machine import SimulatedClock, SimulatedMachine, shape_of, simulated_engine, small_cpu

CONFIG = EngineConfig(model="echo", target_tpot_ms=40.0)


def test_the_law_of_a_machine_is_found_within_the_time_given() -> None:
    clock = SimulatedClock()
    machine, began_s = SimulatedMachine(clock), clock.now_s
    curve = calibration.measure(CONFIG, machine, machine.run, clock=clock)
    assert clock.now_s - began_s < calibration.BUDGET_S + 1.0
    probes = list(calibration._probes(CONFIG, machine))
    assert median(abs(curve.predict(probe.shape) / small_cpu(probe.shape) - 1.0) for probe in probes) < 0.1


def test_a_probe_is_counted_as_the_batch_that_it_becomes() -> None:
    runner = EchoRunner(num_pages=512)
    for probe in calibration._probes(CONFIG, runner):
        assert shape_of(calibration._batch(probe, runner)) == probe.shape


@pytest.mark.parametrize(("num_pages", "max_model_len"), [(1, 20), (3, 64), (40, 33), (2048, 4096)])
def test_probes_stay_within_the_pool_and_the_model(num_pages: int, max_model_len: int) -> None:
    runner = EchoRunner(num_pages=num_pages, max_model_len=max_model_len)
    spy = Spy(runner)
    calibration.measure(CONFIG, runner, spy.run)
    assert max(int(batch.page_ids.max()) for batch in spy.batches) < num_pages
    assert max(int(batch.context_lens.max()) for batch in spy.batches) <= max_model_len


def test_a_machine_too_slow_for_the_time_given_is_measured_at_its_smallest() -> None:
    clock = SimulatedClock()
    machine = SimulatedMachine(clock, lambda shape: 5.0 * shape.num_tokens)
    curve = calibration.measure(CONFIG, machine, machine.run, clock=clock)
    assert curve.predict(calibration.Probe(1, 1, 0).shape) == pytest.approx(5.0, rel=0.3)


def test_a_warm_start_runs_nothing(tmp_path: Path) -> None:
    clock = SimulatedClock()
    simulated_engine(SimulatedMachine(clock), clock, tmp_path, target_tpot_ms=40.0)
    measured_s = clock.now_s
    engine = simulated_engine(SimulatedMachine(clock), clock, tmp_path, target_tpot_ms=50.0)
    assert clock.now_s == measured_s
    assert engine.statistics().num_steps == 0


def test_without_a_target_nothing_is_measured(tmp_path: Path) -> None:
    clock = SimulatedClock()
    simulated_engine(SimulatedMachine(clock), clock, tmp_path, target_ttft_ms=100.0)
    assert clock.now_s == SimulatedClock().now_s
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"knots": [1]}'])
def test_a_damaged_file_is_measured_again(tmp_path: Path, damage: str) -> None:
    clock = SimulatedClock()
    simulated_engine(SimulatedMachine(clock), clock, tmp_path, target_tpot_ms=40.0)
    (file,) = (tmp_path / "step-times").iterdir()
    measured_s = clock.now_s
    file.write_text(damage)
    simulated_engine(SimulatedMachine(clock), clock, tmp_path, target_tpot_ms=40.0)
    assert clock.now_s > measured_s
    assert CostCurve.from_dict(json.loads(file.read_text())).heights


def test_a_folder_that_cannot_be_written_only_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    clock = SimulatedClock()
    simulated_engine(SimulatedMachine(clock), clock, blocked, target_tpot_ms=40.0)
    assert "Step times cannot be kept" in caplog.text


def test_calibration_leaves_nothing_behind(tmp_path: Path) -> None:
    plain = Engine(EngineConfig(model="echo"))
    measured = Engine(EngineConfig(model="echo?step_ms=1", target_tpot_ms=40.0, cache_dir=str(tmp_path)))
    measured.check_integrity()
    assert measured.statistics().num_free_pages == measured.statistics().num_pages
    request = make_request("what is left of it?")
    assert finish(measured, request)["r"].token_ids == finish(plain, request)["r"].token_ids
