"""`tokenmill worker` that also counts every token it draws into a file, which outlives a SIGKILL. A program.

python -m tests.acceptance.counted_worker FILE [arguments of tokenmill worker]
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from tokenmill_worker.cli import worker
from tokenmill_worker.engine import engine
from tokenmill_worker.engine.api import EngineConfig
from tokenmill_worker.engine.batch import Loaded, PackedBatch, Runner, Sampled

COUNT_BYTES = 8


class CountingRunner:
    """A runner whose tokens are counted the moment they are drawn, before anybody hears of them."""

    def __init__(self, runner: Runner, counter: Path) -> None:
        self._runner = runner
        self._counter = os.open(counter, os.O_WRONLY | os.O_CREAT)
        self._num_drawn = 0
        self.num_pages, self.vocab_size, self.max_model_len = runner.num_pages, runner.vocab_size, runner.max_model_len
        self.device, self.fingerprint = runner.device, runner.fingerprint

    def run(self, batch: PackedBatch) -> Sequence[Sampled]:
        drawn = self._runner.run(batch)
        self._num_drawn += len(drawn)
        os.pwrite(self._counter, self._num_drawn.to_bytes(COUNT_BYTES), 0)
        return drawn


def num_drawn(counter: Path) -> int:
    """What a worker, dead or alive, has counted so far."""
    return int.from_bytes(counter.read_bytes()) if counter.exists() else 0


def main(counter: Path, arguments: list[str]) -> None:
    load = engine.load

    def counting_load(config: EngineConfig) -> Loaded:
        loaded = load(config)
        return loaded._replace(runner=CountingRunner(loaded.runner, counter))

    with mock.patch.object(engine, "load", counting_load):
        worker(arguments)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
