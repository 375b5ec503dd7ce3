"""How much of each step the model's own ops take: its forward, and the drawing of tokens. The rest is host work."""

import time
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from tokenmill_worker.engine import Engine


class ModelClock:
    """While entered, the seconds of each step that went by in the model's forward and in the sampler.

    It looks through the engine to its model, which no user has to: hooks on the module, and the sampler's name.
    """

    def __init__(self, engine: Engine) -> None:
        runner: Any = engine._runner
        self._model = runner._adapter.model
        self._module: Any = import_module(type(runner).__module__)
        self._sample = self._module.sample
        self._started_s = 0.0
        self.steps: list[float] = []

    def __enter__(self) -> Self:
        self._hooks = [
            self._model.register_forward_pre_hook(self._start),
            self._model.register_forward_hook(self._stop),
        ]
        self._module.sample = self._timed_sample
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._module.sample = self._sample
        for hook in self._hooks:
            hook.remove()

    def _start(self, *_: object) -> None:
        self._started_s = time.perf_counter()

    def _stop(self, *_: object) -> None:
        self.steps.append(time.perf_counter() - self._started_s)

    def _timed_sample(self, *args: Any) -> Any:
        started_s = time.perf_counter()
        drawn = self._sample(*args)
        self.steps[-1] += time.perf_counter() - started_s
        return drawn
