"""`tokenmill worker` that also counts every token it draws, and lists every request it begins. A program.

python -m tests.acceptance.counted_worker FILE [arguments of tokenmill worker]

FILE holds the count, FILE.begun a line for each request: when (ns of the machine's own clock) and which. Both outlive a
SIGKILL.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple
from unittest import mock

from tokenmill_worker import cli
from tokenmill_worker.cli import worker
from tokenmill_worker.engine import engine
from tokenmill_worker.engine.api import EngineConfig, EngineRequest
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


class Begun(NamedTuple):
    """A worker has begun this request."""

    at_ns: int
    request_id: str


def list_of(counter: Path) -> Path:
    return counter.with_name(counter.name + ".begun")


def begun(counter: Path) -> list[Begun]:
    """All that a worker, dead or alive, has begun so far, also what it resumed."""
    path = list_of(counter)
    lines = path.read_text().splitlines() if path.exists() else []
    return [Begun(int(at_ns), name) for at_ns, _, name in (line.partition(" ") for line in lines)]


class ListingEngine(engine.Engine):
    """Appends to a list what it is given to do."""

    file: ClassVar[int]

    def add_request(self, request: EngineRequest, *, is_validated: bool = False) -> None:
        super().add_request(request, is_validated=is_validated)
        os.write(self.file, f"{time.monotonic_ns()} {request.request_id}\n".encode())


def main(counter: Path, arguments: list[str]) -> None:
    load = engine.load

    def counting_load(config: EngineConfig) -> Loaded:
        loaded = load(config)
        return loaded._replace(runner=CountingRunner(loaded.runner, counter))

    ListingEngine.file = os.open(list_of(counter), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with mock.patch.object(engine, "load", counting_load), mock.patch.object(cli, "Engine", ListingEngine):
        worker(arguments)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
