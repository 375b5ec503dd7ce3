"""Worker processes that a scenario starts, kills and counts, and the load they work on. Knows no fault."""

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.wire.keys import MAX_JOBS_PER_CALL, Lane
from tokenmill.wire.messages import Request
from tokenmill.wire.store import Submission
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams

from tests.acceptance.counted_worker import Begun, begun, num_drawn
from tests.e2e.commands import environment
from tests.queue.harness import Bench, Result
from tests.support.waiting import wait_until

START_TIMEOUT_S = 240.0  # of a worker with a real model, two of them starting on a busy machine
END_TIMEOUT_S = 60.0


class WorkerProcess:
    """One `tokenmill worker`: its log and the count of its tokens lie in `folder`, and stay when it is killed."""

    def __init__(self, bench: Bench, folder: Path, name: str, arguments: Sequence[str]) -> None:
        self._bench = bench
        self._counter, self._log = folder / f"{name}.drawn", folder / f"{name}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.acceptance.counted_worker", str(self._counter), *arguments],
                env=environment({"OMP_NUM_THREADS": "1"}),
                stdin=subprocess.DEVNULL,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def num_drawn(self) -> int:
        """Tokens it has drawn, also those that nobody heard of."""
        return num_drawn(self._counter)

    @property
    def begun(self) -> list[Begun]:
        return begun(self._counter)

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def wait_ready(self) -> None:
        wait_until(lambda: "is ready" in self.log, description="the worker is ready", timeout=START_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(END_TIMEOUT_S)


class Fleet:
    """The workers of one scenario, all with the same settings."""

    def __init__(self, bench: Bench, folder: Path, settings: dict[str, object]) -> None:
        self._bench, self._folder = bench, folder
        self._numbers = itertools.count(1)
        # Not all settings are flags, and the configuration file takes them all.
        self._config = folder / "worker.toml"
        self._config.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in settings.items()))
        self.started: list[WorkerProcess] = []

    def start(self) -> WorkerProcess:
        arguments = ["--config", str(self._config), "--redis", self._bench.url, "--queue", self._bench.keys.queue]
        worker = WorkerProcess(self._bench, self._folder, f"worker-{next(self._numbers)}", arguments)
        self.started.append(worker)
        return worker

    def start_ready(self, num: int = 1) -> list[WorkerProcess]:
        workers = [self.start() for _ in range(num)]
        for worker in workers:
            worker.wait_ready()
        return workers

    @property
    def num_drawn(self) -> int:
        return sum(worker.num_drawn for worker in self.started)

    @property
    def begun(self) -> list[Begun]:
        return [one for worker in self.started for one in worker.begun]

    @property
    def log(self) -> str:
        return "".join(worker.log for worker in self.started)


@contextlib.contextmanager
def running_fleet(bench: Bench, folder: Path, **settings: object) -> Iterator[Fleet]:
    """On the echo model with short leases, unless told otherwise; what still runs at the end is killed."""
    defaults: dict[str, object] = {"model": "echo?step_ms=20", "max_num_seqs": 8, "lease_ttl_s": 1.0}
    fleet = Fleet(bench, folder, defaults | settings)
    try:
        yield fleet
    finally:
        for worker in fleet.started:
            worker.kill()


@dataclass(frozen=True)
class Load:
    """Requests by id, as `submit` takes them, and what an undisturbed engine answers to each."""

    requests: dict[str, dict[str, Any]]
    texts: dict[str, str]
    token_ids: dict[str, list[int]]

    @classmethod
    def echo(cls, num: int, *, max_tokens: int, name: str = "q") -> "Load":
        """Greedy and seeded in turn."""
        requests = {f"{name}-{index}": _request(index, max_tokens) for index in range(num)}
        return cls.answered_by(Engine(EngineConfig(model="echo")), requests)

    @classmethod
    def answered_by(cls, engine: Engine, requests: dict[str, dict[str, Any]]) -> "Load":
        params = [SamplingParams(**_without(fields, "prompt")) for fields in requests.values()]
        outputs = engine.generate([fields["prompt"] for fields in requests.values()], params)
        return cls(
            requests,
            {name: output.text for name, output in zip(requests, outputs, strict=True)},
            {name: output.token_ids for name, output in zip(requests, outputs, strict=True)},
        )

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids.values()))

    def submit(self, bench: Bench) -> None:
        submissions = [
            Submission.of(name, Request.build(**fields), Lane.NORMAL) for name, fields in self.requests.items()
        ]
        for start in range(0, len(submissions), MAX_JOBS_PER_CALL):
            call = bench.transitions.submit(submissions[start : start + MAX_JOBS_PER_CALL])
            assert {reply.status for reply in bench.store.run(call)} == {"accepted"}

    def num_published(self, bench: Bench) -> int:
        """Tokens that stand in the job hashes now, of all requests."""
        names = [bench.keys.job(name) for name in self.requests]
        with bench.server.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hget(name, "published")
            return sum(int(published or 0) for published in pipe.execute())

    def num_final(self, bench: Bench) -> int:
        with bench.server.pipeline(transaction=False) as pipe:
            for name in self.requests:
                pipe.hget(bench.keys.job(name), "finished_ms")
            return sum(finished is not None for finished in pipe.execute())

    def wait_published(self, bench: Bench, num_tokens: int, *, timeout: float = 60.0) -> None:
        wait_until(
            lambda: self.num_published(bench) >= num_tokens,
            description=f"{num_tokens} tokens published",
            timeout=timeout,
        )

    def wait_final(self, bench: Bench, num: int | None = None, *, timeout: float = 60.0) -> None:
        wanted = len(self.requests) if num is None else num
        wait_until(lambda: self.num_final(bench) >= wanted, description=f"{wanted} requests are final", timeout=timeout)

    def results(self, bench: Bench) -> dict[str, Result]:
        """Of all requests; AssertionError when one has no final word, two of them, or a gap."""
        results = {name: bench.result(name) for name in self.requests}
        for name, result in results.items():
            _check_whole(name, result)
        return results

    def assert_answered(self, bench: Bench) -> None:
        """Each exactly once, and as if nothing had happened."""
        for name, result in self.results(bench).items():
            assert result.terminal is not None
            assert result.terminal.type == "done", name
            assert result.token_ids == self.token_ids[name], name
            assert result.text == result.terminal.text == self.texts[name], name


def _check_whole(name: str, result: Result) -> None:
    """Exactly one terminal entry is what `Bench.result` has seen to."""
    assert result.terminal is not None, f"{name} has no final word"
    end = 0
    for delta in result.deltas:
        assert delta.offset == end, f"{name} has a gap or an overlap"
        end = delta.end


def _request(index: int, max_tokens: int) -> dict[str, Any]:
    temperature = float(index % 2)
    return {"prompt": f"request {index}", "max_tokens": max_tokens, "temperature": temperature, "seed": index}


def _without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()
