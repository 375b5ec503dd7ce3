"""Gateway processes that are killed and replaced, and clients that come back until they have everything."""

import contextlib
import itertools
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.http_streams import Streamed, stream
from tests.e2e.commands import command, environment
from tests.support.waiting import wait_until

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
START_TIMEOUT_S = 60.0  # on a busy machine


class Door:
    """One `tokenmill gateway` on a port of its own."""

    def __init__(self, url: str, queue: str, log: Path) -> None:
        self.port = _free_port()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command("gateway", "--redis", url, "--queue", queue, "--port", self.port),
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def rss_mib(self) -> float:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    def wait_open(self) -> None:
        wait_until(self._is_open, description="the gateway listens", timeout=START_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def _is_open(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


class Doors:
    """As many as are open; who kills one opens another."""

    def __init__(self, url: str, queue: str, folder: Path) -> None:
        self._url, self._queue, self._folder = url, queue, folder
        self._numbers = itertools.count(1)
        self.open: list[Door] = []

    def add(self) -> Door:
        door = Door(self._url, self._queue, self._folder / f"gateway-{next(self._numbers)}.log")
        door.wait_open()
        self.open.append(door)
        return door

    def kill(self, door: Door) -> None:
        self.open.remove(door)
        door.kill()


@contextlib.contextmanager
def open_doors(url: str, queue: str, folder: Path, *, num: int = 1) -> Iterator[Doors]:
    doors = Doors(url, queue, folder)
    try:
        for _ in range(num):
            doors.add()
        yield doors
    finally:
        for door in list(doors.open):
            doors.kill(door)


@dataclass
class Visitor:
    """One client that wants one answer, through whichever door is open, and comes back where it was cut off."""

    doors: Doors
    path: str
    name: str
    fields: dict[str, Any]
    visits: list[Streamed] = field(default_factory=list)

    async def run(self) -> None:
        while not self.visits or not self.visits[-1].is_whole:
            self.visits.append(await self._visit(self.doors.open[0].port))

    async def _visit(self, port: int) -> Streamed:
        last_id = next((visit.last_id for visit in reversed(self.visits) if visit.last_id is not None), None)
        headers = {"Idempotency-Key": self.name}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        if last_id is not None and self.path == RESPONSES:
            return await stream(port, f"{RESPONSES}/resp_{self.name}?stream=true", headers=headers)
        return await stream(port, self.path, self.fields, headers=headers)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Of all visits, one behind the other."""
        assert {visit.status for visit in self.visits} <= {0, 200}
        return [event for visit in self.visits for event in visit.decoded()]

    @property
    def token_times_s(self) -> list[float]:
        """Of the last visit's events that bring text."""
        mark = b'"response.output_text.delta"' if self.path == RESPONSES else b'"content":"'
        visit = self.visits[-1]
        return [at for at, (_, data) in zip(visit.times_s, visit.events, strict=True) if mark in data]

    @property
    def text(self) -> str:
        if self.path == RESPONSES:
            deltas = [event for event in self.events if event["type"] == "response.output_text.delta"]
            return "".join(event["delta"] for event in deltas)
        return "".join(choice["delta"].get("content") or "" for event in self.events for choice in event["choices"])


def visitor(doors: Doors, path: str, number: int, *, max_tokens: int) -> Visitor:
    """Number `number` of its kind; each asks something else, greedily."""
    prompt = f"request {number}"
    fields: dict[str, Any] = {"temperature": 0, "stream": True}
    if path == RESPONSES:
        fields |= {"input": prompt, "max_output_tokens": max_tokens}
    else:
        fields |= {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}
    return Visitor(doors, path, f"{path.rpartition('/')[2]}-{number}", fields)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
