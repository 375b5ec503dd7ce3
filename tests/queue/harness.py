"""Workers on the echo model for the queue's tests, in this process or as a child, and what their requests became."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import redis
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.messages import DeltaEntry, Request, ResetEntry, TerminalEntry, decode_entry
from tokenmill.wire.store import QueueStatistics, Store, Submission, Transitions
from tokenmill_worker.cli import assemble
from tokenmill_worker.engine import Engine, EngineConfig
from tokenmill_worker.observe.watch import NOBODY, Watch
from tokenmill_worker.queue.quarantine import PATIENCE_S
from tokenmill_worker.settings import WorkerSettings

from tests.support.waiting import wait_until

LEASE_TTL_S = 1.0  # short, so that takeovers happen within a test; renewed three times a second


@dataclass(frozen=True)
class Result:
    """All that a result stream tells."""

    deltas: list[DeltaEntry]
    terminal: TerminalEntry | None
    num_resets: int = 0
    ids: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Of choice 0, as streamed."""
        return "".join(delta.text for delta in self.deltas if delta.index == 0)

    @property
    def token_ids(self) -> list[int]:
        return [token for delta in self.deltas if delta.index == 0 for token in delta.token_ids]


class Bench:
    """A producer's and a reader's hands on one queue of a real server."""

    def __init__(self, url: str, server: redis.Redis, keys: Keys) -> None:
        self.url = url
        self.server: Any = server  # redis-py types each reply as everything that it could be
        self.keys = keys
        self.store = Store(server)
        self.transitions = Transitions(keys)

    def submit(self, request_id: str = "q-1", *, lane: Lane = Lane.NORMAL, **fields: object) -> str:
        request = Request.build(**({"prompt": "hello", "max_tokens": 8, "temperature": 0.0} | fields))
        submission = Submission.of(request_id, request, lane)
        (reply,) = self.store.run(self.transitions.submit([submission]))
        return reply.status

    def add_raw(self, fields: dict[str, str | bytes], *, lane: Lane = Lane.NORMAL) -> str:
        """A bare XADD; returns the request id that an entry without one gets."""
        return f"{lane.value}-{self.server.xadd(self.keys.lane(lane), fields).decode()}"

    def result(self, request_id: str = "q-1") -> Result:
        """What stands in the result stream now."""
        deltas: list[DeltaEntry] = []
        terminal: TerminalEntry | None = None
        num_resets = 0
        entries = self.server.xrange(self.keys.result(request_id))
        for entry_id, fields in entries:
            entry = decode_entry(entry_id.decode(), fields)
            if isinstance(entry, DeltaEntry):
                deltas.append(entry)
            elif isinstance(entry, ResetEntry):
                deltas, num_resets = [], num_resets + 1
            else:
                assert terminal is None, "two terminal entries"
                terminal = entry
        if terminal is not None:
            assert fields[b"type"] == terminal.type.encode(), "something follows the terminal entry"
        return Result(deltas, terminal, num_resets, [entry_id.decode() for entry_id, _ in entries])

    def wait_result(self, request_id: str = "q-1", *, timeout: float = 20.0) -> Result:
        wait_until(
            lambda: self.result(request_id).terminal is not None,
            description=f"the final word of {request_id}",
            timeout=timeout,
        )
        return self.result(request_id)

    def terminal(self, request_id: str = "q-1") -> TerminalEntry:
        terminal = self.wait_result(request_id).terminal
        assert terminal is not None
        return terminal

    def wait_tokens(self, num_tokens: int, request_id: str = "q-1") -> None:
        wait_until(
            lambda: sum(len(delta.token_ids) for delta in self.result(request_id).deltas) >= num_tokens,
            description=f"{num_tokens} tokens of {request_id}",
        )

    def job(self, request_id: str = "q-1") -> dict[str, str]:
        """Its hash; a counter that stands at 0 need not be there."""
        fields = {
            name.decode(): value.decode() for name, value in self.server.hgetall(self.keys.job(request_id)).items()
        }
        return {"handed_back": "0", "failed": "0", "crashed": "0"} | fields

    def statistics(self) -> QueueStatistics:
        return self.store.run(self.transitions.statistics())

    def workers(self) -> list[str]:
        return [name.decode() for name in self.server.zrange(self.keys.workers, 0, -1)]

    def dead_letters(self) -> list[dict[bytes, bytes]]:
        return [fields for _, fields in self.server.xrange(self.keys.dead)]

    def is_at_rest(self) -> bool:
        """Nothing waits, nothing is pending, nobody is registered."""
        lanes = [self.keys.lane(lane) for lane in Lane]
        waiting = sum(self.server.xlen(lane) for lane in lanes)
        return not waiting and not self.server.exists(self.keys.workers, self.keys.dead_workers)


def settings_for(bench: Bench, **changes: object) -> WorkerSettings:
    values: dict[str, object] = {
        "model": "echo",
        "redis_url": bench.url,
        "queue": bench.keys.queue,
        "max_num_seqs": 8,
        "lease_ttl_s": LEASE_TTL_S,
        "drain_timeout_s": 0.0,
    }
    return WorkerSettings.read(None, values | changes)


class RunningWorker:
    """A worker on a thread of this process."""

    def __init__(self, settings: WorkerSettings, *, patience_s: float = PATIENCE_S, watch: Watch = NOBODY) -> None:
        config = EngineConfig(
            model=settings.model, max_num_seqs=settings.max_num_seqs, kv_cache_tokens=settings.kv_cache_tokens
        )
        self.engine = Engine(config)
        self.worker = assemble(self.engine, settings, settings.redis_url, quarantine_patience_s=patience_s, watch=watch)
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tokenmill-test-worker")

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as failure:
            self.failure = failure

    def start(self) -> None:
        self._thread.start()

    def wait_end(self, timeout: float = 20.0) -> None:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the worker does not end"
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        self.worker.stop()
        self.wait_end()


@contextlib.contextmanager
def running_worker(
    bench: Bench, *, patience_s: float = PATIENCE_S, watch: Watch = NOBODY, **changes: object
) -> Iterator[RunningWorker]:
    """Until the block ends: then it drains, and its engine must be in order."""
    running = RunningWorker(settings_for(bench, **changes), patience_s=patience_s, watch=watch)
    running.start()
    try:
        yield running
    finally:
        running.stop()
    running.engine.check_integrity()


def start_worker(bench: Bench, *arguments: str) -> "subprocess.Popen[bytes]":
    """`tokenmill worker` as a child of its own, with short leases."""
    command = [sys.executable, "-c", "from tokenmill_worker.cli import worker; worker()"]
    command += ["--model", "echo?step_ms=20", "--redis", bench.url, "--queue", bench.keys.queue, *arguments]
    environment = {"PATH": "/usr/bin:/bin", "TOKENMILL_LEASE_TTL_S": str(LEASE_TTL_S)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def worker_process(bench: Bench, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker child; killed when the block ends."""
    child = start_worker(bench, *arguments)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


class Supervisor:
    """Starts a worker child again whenever it ends, as a container's restart policy does. Keeps the exit codes."""

    def __init__(self, bench: Bench, *arguments: str) -> None:
        self._bench = bench
        self._arguments = arguments
        self._is_over = threading.Event()
        self._child = start_worker(bench, *arguments)
        self._thread = threading.Thread(target=self._run, name="tokenmill-test-supervisor")
        self.exit_codes: list[int] = []

    def _run(self) -> None:
        while True:
            self._child.communicate()
            if self._is_over.is_set():
                return
            self.exit_codes.append(self._child.returncode)
            self._child = start_worker(self._bench, *self._arguments)

    def __enter__(self) -> "Supervisor":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        while self._thread.is_alive():  # the child may just be being replaced
            self._child.kill()
            self._thread.join(0.05)


def uninterrupted_text(prompt: str, **fields: object) -> str:
    """What the echo model says with nothing in between: no queue, no batch, no interruption."""
    from tokenmill_worker.engine import SamplingParams

    (output,) = Engine(EngineConfig(model="echo")).generate([prompt], SamplingParams(**fields))  # type: ignore[arg-type]
    return output.text


def body(**fields: object) -> bytes:
    return json.dumps(fields).encode()
