"""How many threads a model's operations get: the cores that this process may use, each once. Knows no model."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

SYSTEM = Path("/sys")


def usable_cores(cpus: Iterable[int] | None = None, *, system: Path = SYSTEM) -> int:
    """Physical cores among the CPUs that the process is bound to, and no more than its container's quota pays for.

    Two threads on one core's two CPUs share its arithmetic units: they gain nothing and wait for each other.
    """
    bound = os.sched_getaffinity(0) if cpus is None else cpus
    cores = {_core(cpu, system) for cpu in bound}
    return max(1, min(len(cores), *_quota(system)))


def _core(cpu: int, system: Path) -> str:
    """A name that the CPUs of one core share; of a machine that does not tell, every CPU is a core."""
    siblings = system / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return siblings.read_text().strip() if siblings.exists() else str(cpu)


def _quota(system: Path) -> Iterator[int]:
    """Whole cores' worth of a cgroup (v2) limit, if there is one; otherwise no bound."""
    limit = system / "fs/cgroup/cpu.max"
    quota, _, period = limit.read_text().partition(" ") if limit.exists() else ("max", "", "")
    yield int(quota) // int(period) if quota.isdigit() else 2**31
