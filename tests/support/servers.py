"""Real servers for tests: an embedded Valkey, its processes and what stands in it. Knows no worker."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import redis
from tokenmill.embedded import EmbeddedServer, find_server, start_embedded

from tests.support.waiting import wait_until

SERVER_VARIABLE = "TOKENMILL_TEST_SERVER"  # the binary that tests start, where it shall not be the embedded one


def find_test_server() -> Path:
    named = os.environ.get(SERVER_VARIABLE)
    return Path(named) if named else find_server()


@contextlib.contextmanager
def running_server(*, data_dir: Path | None = None) -> Iterator[EmbeddedServer]:
    """A server of one's own, for tests that stop, pause or fill it."""
    with start_embedded(data_dir=data_dir, binary=find_test_server()) as server:
        yield server


def server_pid(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


@contextlib.contextmanager
def paused(url: str) -> Iterator[None]:
    """The server holds still meanwhile, with every connection open."""
    pid = server_pid(url)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def is_alive(pid: int) -> bool:
    """A zombie is dead: only its parent has not looked yet."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_gone(pid: int, *, timeout: float = 10.0) -> None:
    wait_until(lambda: not is_alive(pid), description=f"process {pid} is gone", timeout=timeout)


def keys_without_ttl(client: redis.Redis, queue: str) -> set[str]:
    """Names of a queue's keys that live for ever."""
    names = [name.decode() for name in client.scan_iter(match=f"tm:{{{queue}.*", count=1000)]
    return {name for name in names if client.ttl(name) == -1}
