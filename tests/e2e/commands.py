"""The command `tokenmill` as a user has it: a process with arguments, output and an exit code."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from click.testing import CliRunner
from tokenmill.cli import main

TIMEOUT_S = 60.0  # of one command; what hangs fails its test, not the suite


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without what the machine's user may have set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOKENMILL_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **(extra or {})}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tokenmill.cli", *map(str, arguments)]


def tokenmill(
    *arguments: object, stdin: str = "", env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        command(*arguments),
        input=stdin,
        env=environment(env),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def tokenmill_here(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The same without a process of its own, which costs half a second: for what needs no signal and no memory."""
    unset = dict.fromkeys(name for name in os.environ if name.startswith("TOKENMILL_"))
    typed = [str(argument) for argument in arguments]
    result = CliRunner(env=unset, catch_exceptions=False).invoke(main, typed, input=stdin)
    return subprocess.CompletedProcess(typed, result.exit_code, result.stdout, result.stderr)


@contextlib.contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A command that runs meanwhile; killed at the end if it is still there."""
    process = subprocess.Popen(
        command(*arguments),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)


def descendants(pid: int) -> set[int]:
    """All processes below this one, as the kernel lists them."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, (task / "children").read_text().split()):
                found |= {child} | descendants(child)
    return found


def num_lines(path: Path) -> int:
    """Whole lines of a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0
