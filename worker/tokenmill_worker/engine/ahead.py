"""Steps that were launched and not read yet, and how a runner that cannot launch takes part. Knows no scheduler."""

from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np

from tokenmill_worker.engine.api import EngineConfig
from tokenmill_worker.engine.batch import Draws, Ids, Launch, Launcher, PackedBatch, Runner
from tokenmill_worker.engine.scheduler import Scheduled


class InFlight(NamedTuple):
    """A step, and where to read what its sampled rows drew."""

    step: Scheduled
    launch: Launch


@dataclass(frozen=True, slots=True)
class Ran(Launch):
    """A step that had run when it was launched."""

    drawn: Draws

    def read(self) -> Draws:
        return self.drawn


class HostLauncher(Launcher):
    """For a runner that runs on the spot: what a device would carry from step to step is carried here."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._last: Ids = np.zeros(0, dtype=np.int64)

    def launch(self, batch: PackedBatch) -> Ran:
        drawn = Draws.of(self._runner.run(self._completed(batch)))
        self._last = drawn.token_ids
        return Ran(drawn)

    def _completed(self, batch: PackedBatch) -> PackedBatch:
        if not batch.carried:
            return batch
        token_ids = batch.token_ids.copy()
        token_ids[batch.carried.tokens] = self._last[batch.carried.samples]
        return replace(batch, token_ids=token_ids)


def can_launch(runner: Runner) -> bool:
    """Whether it returns before a step has run."""
    return hasattr(runner, "launch")


def launcher_of(runner: Runner) -> Launcher:
    """The runner itself, if it can."""
    return cast("Launcher", runner) if can_launch(runner) else HostLauncher(runner)


def is_overlapped(config: EngineConfig, runner: Runner) -> bool:
    """On a CPU the loop would wait for itself: the same cores compute, and a row would take part once too often. So it
    would with a runner that cannot launch.
    """
    return runner.device.startswith("cuda") and can_launch(runner) if config.overlap == "auto" else config.overlap
