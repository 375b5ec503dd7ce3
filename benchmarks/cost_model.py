"""How well a step's time is foretold: the curve fitted at the start beside the steps of a real run.

Calibrates as a worker with target_tpot_ms does (benchmarks' engines keep no cache for it here), then serves workload A
and compares every step. `frozen` is the fit alone, `online` the same with the corrections of the steps before, `floor`
what a fit to the run's own steps leaves: the noise, which nobody could foretell.
Acceptance: the median error is at most 0.15.

Caveats: a step's time holds the host's work too, which calibration does not see; a neighbour on the machine makes both
the measurement and the run worse, and the two need not meet the same one.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from tokenmill_worker.engine import Engine
from tokenmill_worker.engine.calibration import measure
from tokenmill_worker.engine.cost_model import CostCurve, CostModel, StepShape, fit
from tokenmill_worker.engine.metronome import Metronome, run_whole, shape_of
from tokenmill_worker.engine.scheduler import Scheduled

from benchmarks.engines import add_engine_arguments, engine_settings, generate, load_engine, token_prompts
from benchmarks.report import keep_line, print_json
from benchmarks.rivals.common import percentile
from benchmarks.workload import workload


class TimedStep(NamedTuple):
    """One step as it was."""

    shape: StepShape
    seconds: float


class Recorder(Metronome):
    """Keeps what it times."""

    def __init__(self) -> None:
        super().__init__(None, is_overlapped=False)
        self.steps: list[TimedStep] = []

    def _observe(self, step: Scheduled, step_s: float, between_s: float) -> None:
        self.steps.append(TimedStep(shape_of(step)[0], step_s))


def recorded(engine: Engine, num_requests: int, *, seed: int) -> list[TimedStep]:
    """Workload A's steps. It looks into the engine, which no user has to."""
    work = workload(num_requests, seed=seed)
    recorder = Recorder()
    engine._metronome = recorder
    generate(engine, token_prompts(engine, work), work.max_tokens)
    return recorder.steps


def errors(curve: CostCurve, steps: Sequence[TimedStep], *, is_online: bool) -> list[float]:
    """Relative, of each step, foretold before it ran."""
    model, found = CostModel(curve), []
    for shape, seconds in steps:
        found.append(abs(model.predict(shape) / seconds - 1.0))
        if is_online:
            model.observe(shape, seconds)
    return found


def figures(curve: CostCurve, steps: Sequence[TimedStep]) -> dict[str, float]:
    found: dict[str, float] = {"num_steps": len(steps)}
    for name, is_online in (("frozen", False), ("online", True)):
        values = errors(curve, steps, is_online=is_online)
        found[f"{name}_median_error"] = round(median(values), 4)
        found[f"{name}_p90_error"] = round(percentile(values, 90), 4)
    own = fit([step.shape for step in steps], [step.seconds for step in steps])
    found["floor_median_error"] = round(median(errors(own, steps, is_online=False)), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(parser)
    parser.add_argument("--num-requests", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()
    settings = engine_settings(args)
    engine = load_engine(settings)
    began_s = time.perf_counter()
    curve = measure(engine.config, engine._runner, run_whole(engine._runner, None))
    taken_s = time.perf_counter() - began_s
    found = figures(curve, recorded(engine, args.num_requests, seed=args.seed))
    print("".join(f"{name:<22}{value:>10,.4f}\n" for name, value in found.items()))
    line = print_json("cost_model", {"calibration_s": round(taken_s, 2), **found, "curve": curve.to_dict()}, settings)
    if args.keep:
        keep_line("cost_model", line)


if __name__ == "__main__":
    main()
