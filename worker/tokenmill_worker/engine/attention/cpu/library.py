"""Loads the C++ library, and builds it where the cache has none that fits. Knows no backend and no model.

A cache entry is two files, named by a hash over torch's version, the instruction set, the options and the sources:
KEY.so and KEY.sha256. The checksum is what makes a half-written or damaged library one that is not there: the loader
of the system would not notice before it is too late.
"""

import fcntl
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tokenmill_worker.engine.attention.cpu import shapes, toolchain
from tokenmill_worker.engine.attention.cpu.toolchain import Level, LibraryError

FOLDER = "cpu-library"


def is_loaded() -> bool:
    return hasattr(torch.ops.tokenmill_cpu, "attention")


def load(cache_dir: Path) -> None:
    """After this the ops `torch.ops.tokenmill_cpu.*` exist, once for the whole process. Raises LibraryError."""
    if is_loaded():
        return
    level = toolchain.level()
    folder = cache_dir / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = cached(folder, level) or _build(folder, level)
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]  # torch has no type for it
    except OSError as error:
        remedy = f"{folder} must be writable, and libraries must be allowed to run from there (setting cache_dir)"
        raise LibraryError(f"the library cannot be kept or loaded: {error}", remedy) from error
    shapes.register()


def key(level: Level) -> str:
    return hashlib.sha256(toolchain.recipe(level).encode()).hexdigest()[:24]


def cached(folder: Path, level: Level) -> Path | None:
    """The library, if it is there and whole."""
    path = folder / f"{key(level)}.so"
    try:
        return path if path.with_suffix(".sha256").read_text() == _checksum(path) else None
    except FileNotFoundError:
        return None


def _build(folder: Path, level: Level) -> Path:
    with _locked(folder / f"{key(level)}.lock"):
        return cached(folder, level) or _build_alone(folder, level)  # another process may have been first


def _build_alone(folder: Path, level: Level) -> Path:
    path = folder / f"{key(level)}.so"
    started_s = time.monotonic()
    _tell(f"building the CPU library ({level.name}), once for this machine; about 20 s ...")
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as name:
        made = Path(name) / path.name
        toolchain.build(made, level, folder=Path(name))
        made.with_suffix(".sha256").write_text(_checksum(made))
        for part in (made, made.with_suffix(".sha256")):
            os.replace(part, folder / part.name)
    _tell(f"built the CPU library in {time.monotonic() - started_s:.0f} s")
    return path


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with its holder, however that ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tell(message: str) -> None:
    """To stderr, also where nobody set up logging: a start that takes 20 s longer must say why."""
    sys.stderr.write(f"tokenmill: {message}\n")
    sys.stderr.flush()
