"""The fit of step times, and how it is kept honest, on machines whose law is known."""

import json
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill_worker.engine.cost_model import CostCurve, CostModel, StepShape, fit

from tests.support.machine import small_cpu

Law = Callable[[StepShape], float]

LADDER = (1, 2, 4, 8, 16, 32, 64)
CALIBRATION = [
    *(StepShape(rows, rows, rows * context, 0) for rows in LADDER for context in (33, 257)),
    *(StepShape(n, 1, 0, n * start + n * (n + 1) // 2) for n in (16, 32, 64, 128, 256, 512) for start in (0, 256)),
]


def stepped(shape: StepShape) -> float:
    """A device that computes in tiles of 16 rows, and with slow attention."""
    tiles = -(-shape.num_tokens // 16)
    return 0.003 + 0.0009 * tiles + 1e-4 * shape.num_samples + 2e-6 * shape.num_context + 5e-8 * shape.num_pairs


def flat(shape: StepShape) -> float:
    """The echo model's `step_ms`."""
    return 0.02


def timed(law: Law, shapes: Sequence[StepShape], *, seed: int = 0) -> list[float]:
    """With noise of 8 %, and a pause of the machine now and then."""
    rng = random.Random(seed)
    return [law(shape) * rng.lognormvariate(0.0, 0.08) * (3.0 if rng.random() < 0.08 else 1.0) for shape in shapes]


def served(num: int, *, seed: int = 1) -> list[StepShape]:
    """Steps as a scheduler makes them: decoding rows, and sometimes a chunk beside them."""
    rng, shapes = random.Random(seed), []
    for _ in range(num):
        rows, chunk = rng.randrange(1, 65), rng.choice([0, 0, rng.randrange(2, 440)])
        pairs = chunk * (rng.choice([0, 0, 200]) + chunk // 2)
        shapes.append(StepShape(rows + chunk, rows + bool(chunk), rows * rng.randrange(50, 600), pairs))
    return shapes


@pytest.mark.parametrize("law", [small_cpu, stepped, flat])
def test_a_fit_to_noisy_measurements_predicts_other_steps(law: Law) -> None:
    curve = fit(CALIBRATION, timed(law, CALIBRATION))
    errors = [abs(curve.predict(shape) / law(shape) - 1.0) for shape in served(500)]
    assert median(errors) < 0.15


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_more_of_anything_never_takes_less_time(seed: int) -> None:
    rng = random.Random(seed)
    shapes = rng.sample(CALIBRATION, rng.randrange(1, len(CALIBRATION)))
    curve = fit(shapes, [rng.uniform(0.001, 1.0) for _ in shapes])
    sizes = sorted(rng.randrange(1, 2000) for _ in range(40))
    for less, more in pairwise(sizes):
        base = StepShape(less, less, 100, 100)
        assert 0.0 <= curve.predict(base) <= curve.predict(base._replace(num_tokens=more)) + 1e-12
        assert curve.predict(base) <= curve.predict(base._replace(num_context=more * 100, num_samples=more)) + 1e-12


def test_a_curve_is_written_down_and_read_back_exactly() -> None:
    curve = fit(CALIBRATION, timed(small_cpu, CALIBRATION))
    assert CostCurve.from_dict(json.loads(json.dumps(curve.to_dict()))) == curve


@pytest.mark.parametrize(
    "change",
    [
        {"knots": []},
        {"knots": [2, 1]},
        {"heights": [1.0]},
        {"per_pair": -1.0},
        {"per_pair": float("nan")},
    ],
)
def test_what_is_no_curve_is_refused(change: dict[str, object]) -> None:
    written = {**CostCurve((1, 2), (0.1, 0.2), 0.0, 0.0, 0.0).to_dict(), **change}
    with pytest.raises((ValueError, TypeError)):
        CostCurve.from_dict(written)


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        fit([], [])


def test_a_machine_that_slows_down_is_followed() -> None:
    model = CostModel(fit(CALIBRATION, timed(small_cpu, CALIBRATION)))
    shapes = served(400, seed=2)
    for shape, seconds in zip(shapes, timed(small_cpu, shapes), strict=True):
        model.observe(shape, 1.7 * seconds)
    errors = [abs(model.predict(shape) / (1.7 * small_cpu(shape)) - 1.0) for shape in served(200, seed=3)]
    assert median(errors) < 0.15


def test_one_pause_of_the_machine_is_no_law() -> None:
    model = CostModel(fit(CALIBRATION, [small_cpu(shape) for shape in CALIBRATION]))
    shape = StepShape(16, 16, 2000, 0)
    before = model.predict(shape)
    model.observe(shape, 100.0)
    assert before < model.predict(shape) < 1.1 * before
