"""`tokenmill top`: one frame for scripts, and a screen that follows keys and the window's size."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import closing

import pytest
from tokenmill import Client
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import Store, connect

from tests.e2e.commands import command, environment, started, tokenmill_here
from tests.support.waiting import wait_until


@pytest.fixture
def busy(redis_url: str, queue: str) -> Iterator[tuple[str, ...]]:
    """The options that lead to a queue whose worker is at work, slowly."""
    options = ("--redis", redis_url, "--queue", queue)
    with (
        closing(Store(connect(redis_url))) as store,
        Client(redis_url, queue) as client,
        started("worker", "--model", "echo?step_ms=20", "--max-num-seqs", 4, *options),
    ):
        wait_until(lambda: store.client.zcard(Keys(queue).workers), description="the worker is registered", timeout=30)
        client.submit_many([{"prompt": "SECRET " * 20, "max_tokens": 2_000, "ignore_eos": True}] * 6)
        yield options


def test_one_frame_tells_of_queue_batch_and_workers(busy: tuple[str, ...]) -> None:
    shown = tokenmill_here("top", "--once", *busy)
    assert shown.returncode == 0
    assert "━━━━" in shown.stdout, "the batch is drawn"
    for words in ("tokens/s", "Batch 4 of 4 rows", "normal", "first token", "lease"):
        assert words in shown.stdout
    assert "SECRET" not in shown.stdout


def test_without_a_worker_a_frame_says_so_at_once(redis_url: str, queue: str) -> None:
    shown = tokenmill_here("top", "--once", "--redis", redis_url, "--queue", queue)
    assert "no worker" in shown.stdout


def test_without_a_terminal_it_says_what_to_do(redis_url: str) -> None:
    refused = tokenmill_here("top", "--redis", redis_url)
    assert refused.returncode == 2
    assert "--once" in refused.stderr


class Terminal:
    """A terminal of our own, with a program in it."""

    def __init__(self, *arguments: object) -> None:
        self._ours, theirs = pty.openpty()
        self._theirs = theirs
        self.resize(40, 120)
        env = environment({"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""})
        env = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES", "CI")}
        self.process = subprocess.Popen(command(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        self.seen = ""

    def resize(self, height: int, width: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def press(self, key: str) -> None:
        os.write(self._ours, key.encode())

    def has_shown(self, words: str) -> bool:
        while select.select([self._ours], [], [], 0)[0]:
            self.seen += os.read(self._ours, 65_536).decode("utf-8", "replace")
        return words in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.seen)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


def test_a_screen_follows_the_window_and_ends_with_q(busy: tuple[str, ...]) -> None:
    with closing(Terminal("top", *busy)) as terminal:
        wait_until(lambda: terminal.has_shown("━━━━"), description="the batch is drawn", timeout=30)
        terminal.seen = ""
        terminal.resize(12, 60)
        wait_until(lambda: terminal.has_shown("Batch"), description="it is drawn anew")
        terminal.press("q")
        wait_until(lambda: terminal.has_shown("") and terminal.process.poll() == 0, description="it ends")
