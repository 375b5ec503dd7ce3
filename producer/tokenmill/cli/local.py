"""A queue and a worker of one's own: an embedded server and a worker child process. Knows no rows and no prompts.

The same path as with a server elsewhere: only the URL differs. Both processes die with this one, also on SIGKILL.
"""

import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenmill.bulk.connection import QueueConnection
from tokenmill.bulk.partitioned import PartitionedQueue, connect_queue
from tokenmill.client import Client
from tokenmill.embedded import embedded_server
from tokenmill.lifeline import tied_to_us
from tokenmill.wire.errors import TokenmillError

LOCAL_QUEUE = "default"
STOP_GRACE_S = 3.0  # the server goes away next, so there is nothing that a longer drain could save
MAX_RESTARTS = 3  # of a worker that had served and died; its rows are taken over by the next one ...
RESTART_SPAN_S = 600.0  # ... within so long: a run of days may see more than three
READY_POLL_S = 0.05


class LocalWorkerError(TokenmillError):
    """The worker could not start, or died again and again; `log` is all that it said."""

    def __init__(self, message: str, *, log: Path) -> None:
        super().__init__(message)
        self.log = log


class LocalWorker:
    """The worker child of the server at `url`. `check` restarts one that died; LocalWorkerError when that is no use."""

    def __init__(
        self, url: str, arguments: Sequence[str], *, partitions: int, log: Path, is_serving: Callable[[], bool]
    ) -> None:
        self.url = url
        self._partitions = partitions
        self._log = log
        self._arguments = ["--redis", url, *arguments]
        self._is_serving = is_serving
        self._has_served = False
        self._restarts_s: deque[float] = deque(maxlen=MAX_RESTARTS)
        self._child = _start_worker(self._arguments, log=log)

    def check(self) -> None:
        """Cheap; to be called now and then while waiting for the worker."""
        self._has_served = self._has_served or self._is_serving()
        if self._child.poll() is None:
            return
        if not self._has_served or self._is_hopeless():
            raise LocalWorkerError(f"the local worker {_fate(self._child)}: {self._last_line()}", log=self._log)
        self._restarts_s.append(time.monotonic())
        self._child = _start_worker(self._arguments, log=self._log)

    def _is_hopeless(self) -> bool:
        recent = [at_s for at_s in self._restarts_s if time.monotonic() - at_s < RESTART_SPAN_S]
        return len(recent) == MAX_RESTARTS

    def wait_ready(self) -> None:
        """Returns once the worker takes requests; LocalWorkerError when it cannot."""
        while not self._has_served:
            self.check()
            time.sleep(READY_POLL_S)

    def connect_queue(self, group: str) -> QueueConnection | PartitionedQueue:
        """A run's connection; it looks after this worker while it waits."""
        return connect_queue(self.url, LOCAL_QUEUE, self._partitions, group=group, on_idle=self.check)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what is still there after the grace time."""
        self._child.terminate()
        try:
            self._child.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _last_line(self) -> str:
        """Of its log: a worker that cannot start says why in its last words."""
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _fate(child: "subprocess.Popen[bytes]") -> str:
    code = child.returncode
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _start_worker(arguments: Sequence[str], *, log: Path) -> subprocess.Popen[bytes]:
    """By module, not by the console script, which may be another installation's. Dies with the calling thread."""
    command = tied_to_us([sys.executable, "-m", "tokenmill.cli", "worker", *arguments])
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for us: we end the worker, and the server after it
        )


@contextmanager
def local_worker(
    model: str, options: Mapping[str, object], *, partitions: int = 1, folder: Path
) -> Iterator[LocalWorker]:
    """A server and a worker on it, for as long as the context lasts; `folder` holds the worker's log.

    `options` are the worker's own, by name; those that are None are left to it. The server starts empty: what an
    earlier, killed run left on its own server would come with leases that have to run out first.
    """
    # Said, since TOKENMILL_QUEUE and TOKENMILL_PARTITIONS may be there for another queue.
    arguments = ["--model", model, "--queue", LOCAL_QUEUE, "--partitions", str(partitions)]
    for name, value in options.items():
        arguments += [] if value is None else [name, str(value)]
    data = folder / "server"
    log = folder / "worker.log"
    with embedded_server(data_dir=data) as url, Client(url, partitions=partitions) as client:

        def is_serving() -> bool:
            return bool(client.statistics().workers)

        worker = LocalWorker(url, arguments, partitions=partitions, log=log, is_serving=is_serving)
        try:
            yield worker
        finally:
            worker.stop()
    shutil.rmtree(data, ignore_errors=True)
