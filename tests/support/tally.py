"""Counts the tokens that an echo model draws, in a file that outlives the worker's sudden death. Knows no queue.

`python -m tests.support.tally FILE ...` is `tokenmill worker ...` whose model counts; nothing else differs.
"""

import mmap
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenmill_worker.cli import worker
from tokenmill_worker.engine import echo
from tokenmill_worker.engine.api import EngineConfig
from tokenmill_worker.engine.batch import Loaded, PackedBatch, Runner, Sampled

_load = echo.load
_COUNT = struct.Struct("<Q")


class Tally:
    """A number in shared memory: the kernel keeps it whatever becomes of the process."""

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            self._memory = mmap.mmap(-1, _COUNT.size)
            return
        path.write_bytes(_COUNT.pack(0))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _COUNT.size)

    @property
    def count(self) -> int:
        return int(_COUNT.unpack_from(self._memory)[0])

    def add(self, number: int) -> None:
        _COUNT.pack_into(self._memory, 0, self.count + number)


def read_tally(path: Path) -> int:
    return int(_COUNT.unpack(path.read_bytes())[0]) if path.exists() else 0


class CountingRunner:
    """Any runner; what it draws is counted before anybody learns of it."""

    def __init__(self, runner: Runner, tally: Tally) -> None:
        self._runner = runner
        self._tally = tally

        self.vocab_size, self.max_model_len = runner.vocab_size, runner.max_model_len
        self.num_pages, self.device, self.fingerprint = runner.num_pages, runner.device, runner.fingerprint

    def run(self, batch: PackedBatch) -> Sequence[Sampled]:
        sampled = self._runner.run(batch)
        self._tally.add(len(sampled))
        return sampled


def load_counting(config: EngineConfig, tally: Tally) -> Loaded:
    """The echo model of `config`, counted."""
    loaded = _load(config)
    return loaded._replace(runner=CountingRunner(loaded.runner, tally))


def main() -> None:
    tally = Tally(Path(sys.argv.pop(1)))
    echo.load = lambda config: load_counting(config, tally)
    worker()


if __name__ == "__main__":
    main()
