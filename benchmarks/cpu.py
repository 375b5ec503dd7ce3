"""CPU time of other processes and of their threads, from /proc. Linux only; knows no queue."""

import os
from pathlib import Path
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ThreadTime(NamedTuple):
    name: str
    seconds: float


def parse_stat(text: str) -> ThreadTime:
    """Name, and user plus system time, of one `stat` file; a name may hold spaces and parentheses."""
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return ThreadTime(head.partition("(")[2], (int(fields[11]) + int(fields[12])) / TICKS_PER_S)


def process_cpu_s(pid: int) -> float:
    return parse_stat(Path(f"/proc/{pid}/stat").read_text()).seconds


def thread_cpu_s(pid: int) -> dict[str, float]:
    """Seconds by thread name; threads of one name are summed."""
    seconds: dict[str, float] = {}
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        name, spent_s = parse_stat(stat.read_text())
        seconds[name] = seconds.get(name, 0.0) + spent_s
    return seconds
