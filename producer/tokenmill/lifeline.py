"""Runs a program that dies with the process that started it, also when that one is killed. Knows no program.

A parent that gets SIGKILL cannot clean up, so the child asks the kernel to kill it when its parent dies
(PR_SET_PDEATHSIG, Linux), and only then becomes the program: the request survives exec. It is asked for in a process of
its own, because code between fork and exec is unsafe in a parent with threads.

The kernel's "parent" is the thread that started the child: start one from a thread that lives as long as it shall.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def tied_to_us(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` as a child that dies with this process."""
    # -S -E: the shim needs neither site-packages nor the environment, and starts in a third of the time without them.
    return [sys.executable, "-S", "-E", __file__, str(os.getpid()), *command]


def die_with(parent: int) -> None:
    """From here on this process is killed when `parent` dies; at once if it is dead already."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died between our start and the call above
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
