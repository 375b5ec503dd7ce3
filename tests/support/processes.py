"""Worker processes that are killed, frozen, drained and started again. Knows the worker by its command line alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from tokenmill.lifeline import tied_to_us

from tests.support.tally import read_tally

ROOT = Path(__file__).parents[2]


class WorkerProcess:
    """`tokenmill worker` whose model counts what it draws; its log and its count are kept in `folder`."""

    def __init__(self, folder: Path, number: int, arguments: tuple[str, ...], settings: Mapping[str, str]) -> None:
        self.tally_path = folder / f"worker-{number}.tally"
        self.log_path = folder / f"worker-{number}.log"
        environment = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", **settings}
        with self.log_path.open("wb") as log:
            self._child = subprocess.Popen(
                tied_to_us([sys.executable, "-m", "tests.support.tally", str(self.tally_path), *arguments]),
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.is_frozen = False

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def num_drawn(self) -> int:
        return read_tally(self.tally_path)

    def is_running(self) -> bool:
        return self._child.poll() is None

    def kill(self) -> None:
        """SIGKILL, without a word to anybody."""
        self._child.kill()
        self._child.wait()

    def terminate(self) -> None:
        """SIGTERM: it drains."""
        self._child.terminate()

    def wait(self, timeout: float) -> int:
        return self._child.wait(timeout)

    def freeze(self) -> None:
        self._child.send_signal(signal.SIGSTOP)
        self.is_frozen = True

    def thaw(self) -> None:
        self._child.send_signal(signal.SIGCONT)
        self.is_frozen = False


class Fleet:
    """`size` workers of one kind. `mend` replaces those that ended; nobody outlives the block."""

    def __init__(self, folder: Path, size: int, *arguments: str, **settings: str) -> None:
        self._folder = folder
        self._size = size
        self._arguments = arguments
        self._settings = settings
        self.everyone: list[WorkerProcess] = []

    def __enter__(self) -> Self:
        self.mend()
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self.running():
            worker.kill()

    def running(self) -> list[WorkerProcess]:
        return [worker for worker in self.everyone if worker.is_running()]

    def active(self) -> list[WorkerProcess]:
        """Running and not frozen."""
        return [worker for worker in self.running() if not worker.is_frozen]

    def mend(self) -> None:
        for _ in range(self._size - len(self.running())):
            self.everyone.append(WorkerProcess(self._folder, len(self.everyone), self._arguments, self._settings))

    def by_pid(self, pid: int) -> WorkerProcess | None:
        return next((worker for worker in self.everyone if worker.pid == pid), None)

    @property
    def num_drawn(self) -> int:
        return sum(worker.num_drawn for worker in self.everyone)

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(self.running())
