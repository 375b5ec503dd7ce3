"""From a backend's name to the backend, and what `auto` means on which device."""

import logging
from functools import cache
from pathlib import Path

import torch

from tokenmill_worker.engine.api import EngineError
from tokenmill_worker.engine.attention.backend import Backend
from tokenmill_worker.engine.attention.cpu import library, toolchain
from tokenmill_worker.engine.attention.cpu.backend import CpuBackend
from tokenmill_worker.engine.attention.cpu.toolchain import LibraryError
from tokenmill_worker.engine.attention.reference import ReferenceBackend
from tokenmill_worker.engine.attention.sdpa import SdpaBackend
from tokenmill_worker.engine.attention.triton.probe import TritonError, triton_backend

CACHE_DIR = Path("~/.cache/tokenmill")

_logger = logging.getLogger(__name__)


def backend_named(name: str, *, device: str = "cpu", cache_dir: Path = CACHE_DIR) -> Backend:
    """`auto` is the fastest that runs here. Raises EngineError where a named one cannot run."""
    if name == "reference":
        return ReferenceBackend()
    if name == "sdpa":
        return SdpaBackend()
    if name == "triton" or (name == "auto" and device == "cuda"):
        return _by_triton(device, is_wanted=name == "triton")
    if name == "auto" and device != "cpu":
        return SdpaBackend()
    return _by_library(cache_dir.expanduser(), is_wanted=name == "cpu")


def _by_triton(device: str, *, is_wanted: bool) -> Backend:
    try:
        return triton_backend(torch.device(device))
    except TritonError as error:
        return _stand_in(error, is_wanted=is_wanted)


def _by_library(cache_dir: Path, *, is_wanted: bool) -> Backend:
    try:
        if not is_wanted and toolchain.is_too_plain(toolchain.level()):
            raise LibraryError("this CPU has no AVX2", "newer machines are faster in any case")
        library.load(cache_dir)
    except LibraryError as error:
        return _stand_in(error, is_wanted=is_wanted)
    return CpuBackend()


def _stand_in(error: EngineError, *, is_wanted: bool) -> Backend:
    """What runs everywhere, and why; the error where the other was asked for by name."""
    if is_wanted:
        raise error
    _warn(f"attention runs on torch's own kernels (sdpa), which are slower: {error}")
    return SdpaBackend(note=str(error))


@cache
def _warn(message: str) -> None:
    """Once: every load of a model in this process would say the same."""
    _logger.warning("%s", message)
