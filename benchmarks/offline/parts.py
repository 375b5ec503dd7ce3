"""How much of a step the model takes: its forward (with what prepares it) and the drawing of tokens."""

import time
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from tokenmill_worker.engine import Engine


class ModelClock:
    """While entered, the seconds of each step that went by in the model's forward and in the sampler.

    The making of the step's tensors is part of the forward here.
    It looks through the engine to its model, which no user has to: its adapter's forward, and the sampler's name.
    """

    def __init__(self, engine: Engine) -> None:
        runner: Any = engine._runner
        self._adapter = runner._adapter
        self._forward = self._adapter.answers
        self._module: Any = import_module(type(runner).__module__)
        self._sample = self._module.sample_answers
        self.steps: list[float] = []

    def __enter__(self) -> Self:
        self._adapter.answers = self._timed_forward
        self._module.sample_answers = self._timed_sample
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._module.sample_answers = self._sample
        self._adapter.answers = self._forward

    def _timed_forward(self, *args: Any) -> Any:
        started_s = time.perf_counter()
        answers = self._forward(*args)
        self.steps.append(time.perf_counter() - started_s)
        return answers

    def _timed_sample(self, *args: Any) -> Any:
        started_s = time.perf_counter()
        drawn = self._sample(*args)
        self.steps[-1] += time.perf_counter() - started_s
        return drawn
