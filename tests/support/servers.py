"""Real servers for tests: an embedded Valkey, its processes and what stands in it. Knows no worker."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import redis
from tokenmill.embedded import EmbeddedServer, find_server, start_embedded
from tokenmill.wire.keys import GROUP, Keys, Lane
from tokenmill.wire.store import connect

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


class RestartableServer:
    """A server that can be killed and come back, with the same data on the same port. Every write is on its disk."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._stack = contextlib.ExitStack()
        self._server = self._start(None)

    def _start(self, port: int | None) -> EmbeddedServer:
        server = self._stack.enter_context(start_embedded(data_dir=self._data_dir, port=port))
        with redis.Redis.from_url(server.tcp_url) as client:
            client.config_set("appendfsync", "always")
        return server

    @property
    def url(self) -> str:
        return self._server.tcp_url

    @property
    def port(self) -> int:
        return self._server.port

    def restart(self, *, is_killed: bool = True) -> None:
        """By SIGKILL or SIGTERM; back when it answers again."""
        pid = server_pid(self.url)
        os.kill(pid, signal.SIGKILL if is_killed else signal.SIGTERM)
        wait_gone(pid)
        self._stack.close()
        self._server = self._start(self.port)

    def close(self) -> None:
        self._stack.close()


class ForgetfulServer:
    """A server without an append-only file, at an address that it keeps when it starts again."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.start()

    def start(self) -> None:
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen([str(find_test_server()), *options], stdout=subprocess.DEVNULL)
        with connect(self.url) as client:
            wait_until(lambda: _answers(client), description="the server answers")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


def kill_connections(url: str) -> int:
    """CLIENT KILL of every connection but our own; how many there were."""
    with redis.Redis.from_url(url) as client:
        own = client.client_id()
        others = [str(row["id"]) for row in client.client_list() if int(row["id"]) != own]
        return sum(int(client.client_kill_filter(_id=number)) for number in others)


def destroy_groups(url: str, keys: Keys) -> None:
    """As if the server had lost the consumer group of every lane, and with it who holds what."""
    with redis.Redis.from_url(url) as client:
        for lane in Lane:
            client.xgroup_destroy(keys.lane(lane), GROUP)


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
