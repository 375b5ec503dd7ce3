"""A machine whose steps take as long as a known function says, on a clock of its own: minutes pass in a moment."""

import random
from collections.abc import Callable, Sequence

from tokenmill_worker.engine.api import EngineConfig
from tokenmill_worker.engine.batch import PackedBatch, Sampled
from tokenmill_worker.engine.echo import EchoRunner, EchoTokenizer
from tokenmill_worker.engine.engine import Engine
from tokenmill_worker.tune.loop import Loop
from tokenmill_worker.tune.workload import random_workload

StepTime = Callable[[int], float]  # of the tokens of a step; seconds


def memory_then_arithmetic(num_tokens: int) -> float:
    """32 ms for reading the weights, then 1 ms a token: the two meet at 32 tokens."""
    return max(0.032, 0.001 * num_tokens)


class Clock:
    """Stands still but for what advances it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += max(seconds, 1e-6)


class SimulatedRunner(EchoRunner):
    """`noise`: each step is by up to so much slower, and every third second of the clock twice that on top."""

    def __init__(self, clock: Clock, step_s: StepTime, *, noise: float = 0.0, num_pages: int = 4096) -> None:
        super().__init__(num_pages=num_pages)
        self._clock, self._seconds, self._noise = clock, step_s, noise
        self._rng = random.Random(1)

    def run(self, batch: PackedBatch) -> Sequence[Sampled]:
        is_slow = int(self._clock.now_s) % 3 == 0
        factor = 1 + self._noise * (self._rng.random() + 2 * is_slow)
        self._clock.wait(factor * self._seconds(batch.num_tokens))
        return super().run(batch)


def simulated_loop(
    clock: Clock,
    step_s: StepTime = memory_then_arithmetic,
    *,
    noise: float = 0.0,
    most_rows: int = 128,
    prompt_tokens: str = "~12",
    output_tokens: str = "~24",
    deadline_s: float = float("inf"),
) -> Loop:
    config = EngineConfig(
        model="echo", max_num_seqs=most_rows, max_num_batched_tokens=2048, enable_prefix_caching=False
    )
    engine = Engine(config, runner=SimulatedRunner(clock, step_s, noise=noise), tokenizer=EchoTokenizer())
    work = random_workload(prompt_tokens, output_tokens, vocab_size=256, max_model_len=engine.max_model_len)
    return Loop(engine, work, deadline_s=deadline_s, now=clock.now, wait=clock.wait)
