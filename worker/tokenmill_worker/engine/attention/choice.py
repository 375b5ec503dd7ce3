"""From a backend's name to the backend, and what `auto` means on which device."""

import logging
from functools import cache
from pathlib import Path

from tokenmill_worker.engine.attention.backend import Backend
from tokenmill_worker.engine.attention.cpu import library, toolchain
from tokenmill_worker.engine.attention.cpu.backend import CpuBackend
from tokenmill_worker.engine.attention.cpu.toolchain import LibraryError
from tokenmill_worker.engine.attention.reference import ReferenceBackend
from tokenmill_worker.engine.attention.sdpa import SdpaBackend

CACHE_DIR = Path("~/.cache/tokenmill")

_logger = logging.getLogger(__name__)


def backend_named(name: str, *, device: str = "cpu", cache_dir: Path = CACHE_DIR) -> Backend:
    """`auto` is the fastest that runs here. Raises LibraryError where `cpu` was asked for and cannot run."""
    if name == "reference":
        return ReferenceBackend()
    if name == "sdpa" or (name == "auto" and device != "cpu"):
        return SdpaBackend()
    try:
        if name == "auto" and toolchain.is_too_plain(toolchain.level()):
            raise LibraryError("this CPU has no AVX2", "newer machines are faster in any case")
        library.load(cache_dir.expanduser())
    except LibraryError as error:
        if name == "cpu":
            raise
        _warn(f"attention runs on torch's own kernels (sdpa), which are slower: {error}")
        return SdpaBackend(note=str(error))
    return CpuBackend()


@cache
def _warn(message: str) -> None:
    """Once: every load of a model in this process would say the same."""
    _logger.warning("%s", message)
