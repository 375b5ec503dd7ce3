"""A bulk run as a process that may be killed and started again, and what it must have come to. Knows no worker."""

import json
import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from tokenmill.bulk.output import folder_of

from tests.acceptance.counted_worker import Begun
from tests.e2e.commands import command, environment
from tests.support.waiting import wait_until

SCALE_VARIABLE = "TOKENMILL_ACCEPTANCE_SCALE"  # of the full forms: 0.1 runs each at a tenth of its size
ROW_HASH = re.compile(rb'"row_hash": "([0-9a-f]{32})"')

Victim = Literal["runner", "worker", "server"]


def scaled(num: int) -> int:
    return max(1, round(num * float(os.environ.get(SCALE_VARIABLE, "1"))))


def write_rows(path: Path, rows: Iterable[object]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


class Kill(NamedTuple):
    """Of one process, when this share of the output's bytes is written."""

    share: float
    victim: Victim


def random_kills(num: int, *, seed: int) -> list[Kill]:
    """The server once, the runner and the workers in equal parts."""
    rng = random.Random(seed)
    runner: list[Victim] = ["runner"] * (num // 2)
    worker: list[Victim] = ["worker"] * (num - 1 - len(runner))
    victims: list[Victim] = ["server", *runner, *worker]
    rng.shuffle(victims)
    shares = sorted(rng.uniform(0.02, 0.97) for _ in victims)
    return [Kill(share, victim) for share, victim in zip(shares, victims, strict=True)]


class BulkProcess:
    """`tokenmill bulk run` with these options; its words are kept in a log beside the output."""

    def __init__(self, rows: Path, out: Path, *options: object, env: dict[str, str] | None = None) -> None:
        self.out = out
        self._command = command("bulk", "run", rows, "--out", out, *options)
        self._log = out.with_suffix(".log")
        self._env = environment(env)
        self.process = self._start()
        self.peak_rss_kib = 0

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def num_bytes(self) -> int:
        return self.out.stat().st_size if self.out.exists() else 0

    @property
    def run_id(self) -> str:
        """What its request ids begin with."""
        manifest = folder_of(self.out) / "manifest.json"
        return str(json.loads(manifest.read_text())["run"])

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def kill_and_restart(self) -> None:
        self.kill()
        self.process = self._start()

    def wait_bytes(self, num: float, *, timeout: float = 300.0) -> None:
        wait_until(lambda: self.num_bytes >= num or self._has_ended(), description="rows are written", timeout=timeout)

    def wait_done(self, *, timeout: float = 1_200.0) -> None:
        wait_until(self._has_ended, description="the run ends", timeout=timeout)
        assert self.process.returncode == 0, self.log

    def _has_ended(self) -> bool:
        """Looks at its memory on the way: what the kernel tells at the end is the largest of its children's too."""
        if self.process.poll() is not None:
            return True
        self.peak_rss_kib = max(self.peak_rss_kib, peak_rss_kib(self.process.pid))
        return False


def peak_rss_kib(pid: int) -> int:
    """Of a process that runs; 0 where there is none."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return int(found[1]) if found else 0


def run_to_the_end(rows: Path, out: Path, *options: object) -> BulkProcess:
    run = BulkProcess(rows, out, *options)
    run.wait_done()
    return run


class OnDisk:
    """When each row was first seen in the output file. A row that is begun later than that was done for nothing."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._seen_ns: dict[str, int] = {}

    def look(self) -> None:
        now_ns = time.monotonic_ns()
        for name in ROW_HASH.findall(self._out.read_bytes()) if self._out.exists() else []:
            self._seen_ns.setdefault(name.decode(), now_ns)

    def begun_again(self, begun: Iterable[Begun]) -> list[str]:
        """A row that was seen before its look's own time had been written before it."""
        never = 1 << 62
        names = ((one.at_ns, one.request_id.partition(":")[2].partition("~")[0]) for one in begun)
        return [name for at_ns, name in names if at_ns > self._seen_ns.get(name, never)]


def carry_out(
    kills: Sequence[Kill], run: BulkProcess, *, num_bytes: int, slay: dict[Victim, Callable[[], None]]
) -> OnDisk:
    """One after another, at their moments; `num_bytes` is the size of the whole output."""
    on_disk = OnDisk(run.out)
    for kill in kills:
        run.wait_bytes(kill.share * num_bytes)
        slay[kill.victim]()
        on_disk.look()
    return on_disk
