"""How much memory a device has left. Knows no model."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def available_bytes(device: torch.device) -> int:
    """What the driver or the system would still give; on the CPU no more than the container's own limit leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_machine_bytes(), *_container_bytes())


def usable_bytes(free: int, total: int, *, utilization: float) -> int:
    """What is left of that share of a device's memory which the engine may take; others' memory is not ours."""
    return max(0, free - int(total * (1 - utilization)))


@contextmanager
def returned_memory() -> Iterator[None]:
    """When the device has no memory left inside, what torch holds for later is given back before anybody tries again:
    it may be there, in pieces that are too small."""
    try:
        yield
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()  # nothing, where there is no CUDA
        raise


def _machine_bytes() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _container_bytes() -> Iterator[int]:
    """What a cgroup (v2) limit leaves, if there is one; otherwise no bound."""
    limit, usage = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and usage.exists() and (text := limit.read_text().strip()).isdigit():
        yield max(int(text) - int(usage.read_text()), 0)
    else:
        yield 2**63 - 1
