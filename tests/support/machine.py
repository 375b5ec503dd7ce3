"""A simulated machine: an echo model whose steps take time by a known law, on a clock that nothing else moves."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenmill_worker.engine.api import EngineConfig
from tokenmill_worker.engine.batch import PackedBatch, Sampled
from tokenmill_worker.engine.cost_model import StepShape
from tokenmill_worker.engine.echo import EchoRunner, EchoTokenizer
from tokenmill_worker.engine.engine import Engine

Law = Callable[[StepShape], float]


def small_cpu(shape: StepShape) -> float:
    """Seconds, as SmolLM2 takes on two cores: weights are read once, then arithmetic counts."""
    products_s = 0.012 + 0.0002 * min(shape.num_tokens, 8) + 0.0007 * max(0, shape.num_tokens - 8)
    return products_s + 0.0003 * shape.num_samples + 6e-7 * shape.num_context + 1.5e-8 * shape.num_pairs


class SimulatedClock:
    """Seconds; only `pass_by` moves them."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def pass_by(self, seconds: float) -> None:
        self.now_s += max(0.0, seconds)


class SimulatedMachine(EchoRunner):
    """`slowness` multiplies all times, `noise` is the standard deviation of their logarithm."""

    def __init__(self, clock: SimulatedClock, law: Law = small_cpu, *, noise: float = 0.05, seed: int = 0) -> None:
        super().__init__(num_pages=2048, max_model_len=2048)
        self.slowness = 1.0
        self._clock, self._law, self._noise = clock, law, noise
        self._rng = random.Random(seed)

    def run(self, batch: PackedBatch) -> Sequence[Sampled]:
        sampled = super().run(batch)
        self._clock.pass_by(self._law(shape_of(batch)) * self.slowness * self._rng.lognormvariate(0.0, self._noise))
        return sampled


def shape_of(batch: PackedBatch) -> StepShape:
    """Counted row by row, unlike the engine's own count."""
    num_context = num_pairs = 0
    lengths = [end - start for start, end in zip(batch.row_starts[:-1], batch.row_starts[1:], strict=True)]
    for length, end in zip(map(int, lengths), map(int, batch.context_lens), strict=True):
        if length == 1:
            num_context += end
        else:
            num_pairs += sum(range(end - length + 1, end + 1))
    return StepShape(batch.num_tokens, len(batch.samples), num_context, num_pairs)


def simulated_engine(machine: SimulatedMachine, clock: SimulatedClock, folder: Path, **settings: object) -> Engine:
    """On a fresh cache folder it is calibrated, which passes some seconds by."""
    config = EngineConfig(model="echo", cache_dir=str(folder), enable_prefix_caching=False, **settings)  # type: ignore[arg-type]  # fields of the config
    return Engine(config, runner=machine, tokenizer=EchoTokenizer(), clock=clock)
