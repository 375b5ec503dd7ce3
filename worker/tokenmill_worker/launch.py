"""Starts the processes that share one model on this machine, and ends all when one ends. Knows no model and no queue.

torchrun does the same, and more; this needs no second command, leaves a drain the time that the worker's settings give
it (torchrun kills after 30 s), and leaves nobody behind when it is killed itself.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from tokenmill.lifeline import tied_to_us

LOCALHOST = "127.0.0.1"
POLL_S = 0.1
GRACE_S = 10.0  # for those that lost a process to say so and end by themselves


def rank_of(environment: Mapping[str, str]) -> int | None:
    """Which of several processes this is; None where nobody started several."""
    rank = environment.get("RANK", "")
    return int(rank) if rank.isdecimal() and "WORLD_SIZE" in environment else None


def run(command: Sequence[str], size: int) -> int:
    """`command` as ranks 0 to size - 1, until they end. Returns the exit code of the one that ended the others.

    SIGTERM and SIGINT go to rank 0, which drains and then sends the others home.
    """
    port = _free_port()
    children = [_start(command, rank, size, port) for rank in range(size)]
    try:
        with _passed_on(children[0]):
            code = _wait_first(children)
            _wait_all(children, GRACE_S)
    finally:
        for child in children:
            child.kill()
            child.wait()
    return code


def _start(command: Sequence[str], rank: int, size: int, port: int) -> "subprocess.Popen[bytes]":
    """The variables are those of torchrun."""
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": LOCALHOST,
        "MASTER_PORT": str(port),
    }
    # A session of its own: Ctrl-C in a terminal reaches us alone.
    return subprocess.Popen(tied_to_us(command), env=environment, stdin=subprocess.DEVNULL, start_new_session=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_first(children: Sequence["subprocess.Popen[bytes]"]) -> int:
    """The exit code of rank 0 when it ended well, or of whoever ended otherwise before."""
    while True:
        codes = [child.poll() for child in children]
        failed = next((code for code in codes if code), None)
        if failed is not None or codes[0] is not None:
            return _as_shell(failed or 0)
        time.sleep(POLL_S)


def _as_shell(code: int) -> int:
    return 128 - code if code < 0 else code


def _wait_all(children: Sequence["subprocess.Popen[bytes]"], grace_s: float) -> None:
    give_up_s = time.monotonic() + grace_s
    while any(child.poll() is None for child in children) and time.monotonic() < give_up_s:
        time.sleep(POLL_S)


@contextmanager
def _passed_on(leader: "subprocess.Popen[bytes]") -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        leader.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
