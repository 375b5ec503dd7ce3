"""Who held which request and what was written for it, told by the calls and replies on the wire. Knows no connection.

What it hears it hears from the server itself, also of replies that never reach their worker.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from tokenmill.wire.store import Script


@dataclass(frozen=True, slots=True)
class Tenure:
    """`worker` was given `request_id` under `fence`, with `published` tokens told in `epoch`."""

    worker: str
    request_id: str
    fence: int
    published: int
    epoch: int


@dataclass(slots=True)
class Writes:
    """All that `worker` wrote for `request_id`: how far its accepted deltas reach, and how often it was refused."""

    worker: str
    request_id: str
    published: int = 0
    has_finished: bool = False
    num_refused: int = 0


@cache
def script_names() -> dict[str, str]:
    """sha1 -> name of every transition."""
    folder = resources.files("tokenmill.wire") / "scripts"
    names = [entry.name.removesuffix(".lua") for entry in folder.iterdir() if entry.name.endswith(".lua")]
    return {Script.load(name).sha: name for name in names if name != "lib"}


class Ledger:
    """`on_call` hears of every transition the moment its reply is there: (name, arguments, reply)."""

    def __init__(self) -> None:
        self.tenures: dict[tuple[str, str, int], Tenure] = {}
        self.writes: dict[tuple[str, str], Writes] = {}
        self.workers: set[str] = set()
        self.num_calls: dict[str, int] = {}
        self.on_call: Callable[[str, Sequence[bytes], Any], None] = lambda name, args, reply: None
        self._lock = threading.Lock()

    def observe(self, command: Sequence[bytes], reply: Any) -> None:
        """One command and what the server answered; an error reply is an exception."""
        call = _parse(command)
        if call is None or isinstance(reply, Exception):
            return
        name, keys, args = call
        with self._lock:
            self.num_calls[name] = self.num_calls.get(name, 0) + 1
            if name == "begin":
                self._begin(args[0].decode(), reply)
            elif name in ("publish", "finish"):
                self._write(args[0].decode(), keys, reply, is_last=name == "finish")
            elif name == "register":
                self.workers.add(args[0].decode())
        self.on_call(name, args, reply)

    def _begin(self, worker: str, reply: Sequence[Sequence[bytes]]) -> None:
        for row in reply:
            if row[0] == b"begun":
                request_id, fence, published, epoch = row[1].decode(), int(row[3]), int(row[5] or 0), int(row[6] or 0)
                tenure = Tenure(worker, request_id, fence, published, epoch)
                self.tenures.setdefault((worker, request_id, fence), tenure)

    def _write(self, worker: str, keys: Sequence[bytes], reply: Sequence[Sequence[Any]], *, is_last: bool) -> None:
        request_ids = [key.decode().partition(":r:")[2] for key in keys if b":r:" in key]
        for request_id, row in zip(request_ids, reply, strict=True):
            writes = self.writes.setdefault((worker, request_id), Writes(worker, request_id))
            if row[0] == b"ok":
                writes.published = max(writes.published, int(row[1] or 0))
                writes.has_finished |= is_last
            elif row[0] == b"fenced":
                writes.num_refused += 1


def _parse(command: Sequence[bytes]) -> tuple[str, Sequence[bytes], Sequence[bytes]] | None:
    """(script's name, its keys, its arguments), when the command is one of our transitions."""
    kind = command[0].upper()
    if kind not in (b"EVALSHA", b"EVAL"):
        return None
    sha = command[1].decode() if kind == b"EVALSHA" else hashlib.sha1(command[1], usedforsecurity=False).hexdigest()
    name = script_names().get(sha)
    num_keys = int(command[2])
    return (name, command[3 : 3 + num_keys], command[3 + num_keys :]) if name else None
