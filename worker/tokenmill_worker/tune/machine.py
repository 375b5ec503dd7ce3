"""What figures depend on and a reader cannot guess: the processor, the device, the versions. Knows no model."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tokenmill_worker.engine.threads import usable_cores

PACKAGES = ("tokenmill", "torch", "transformers", "numpy")


def machine(device: str) -> dict[str, str]:
    """In words, for people; `device` as torch names it."""
    found = {"processor": f"{cpu_name()}, {usable_cores()} usable cores", "python": platform.python_version()}
    if device.startswith("cuda"):
        import torch

        found["device"] = torch.cuda.get_device_name(device)
    return found | {name: own for name in PACKAGES if (own := _version(name)) is not None}


def cpu_name() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
