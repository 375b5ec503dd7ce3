"""The compiler, the instruction set, and the commands that turn csrc/ into a library. Knows no cache."""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from tokenmill_worker.engine.api import EngineError

SOURCES = Path(__file__).parent / "csrc"
COMPILERS = ("g++", "c++", "clang++")
TIMEOUT_S = 600  # of one compiler run: a machine that swaps, not one that is slow

_AVX2 = {"avx2", "fma", "f16c"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


class LibraryError(EngineError):
    """The library cannot be had; says why and what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")


class Level(NamedTuple):
    """An instruction set that the sources know to use, as /proc/cpuinfo names it."""

    name: str
    flags: frozenset[str]

    @property
    def options(self) -> list[str]:
        return [f"-m{flag.replace('_', '')}" for flag in sorted(self.flags)]


# The best first. Not -march=native: one library serves all machines of a level, so an image can bring it along.
LEVELS = (
    Level("avx512_bf16", frozenset(_AVX512 | {"avx512_vnni", "avx512vbmi", "avx512_bf16"})),
    Level("avx512_vnni", frozenset(_AVX512 | {"avx512_vnni"})),
    Level("avx512", frozenset(_AVX512)),
    Level("avx2", frozenset(_AVX2)),
)
GENERIC = Level("generic", frozenset())


def level() -> Level:
    """Of this machine."""
    flags = _cpu_flags()
    return next((level for level in LEVELS if level.flags <= flags), GENERIC)


def _cpu_flags() -> set[str]:
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


def is_too_plain(level: Level) -> bool:
    """torch's own kernels choose their instructions at run time; x86 without AVX2 has nothing for ours to gain."""
    return level is GENERIC and platform.machine().lower() in ("x86_64", "amd64")


def recipe(level: Level) -> str:
    """All that decides what the library's bytes are, but for the compiler: it changes with the cache's owner only."""
    parts = [torch.__version__, platform.machine(), level.name, *_options(level)]
    for source in sorted(SOURCES.iterdir()):
        parts += [source.name, source.read_text("utf-8")]
    return "\0".join(parts)


def build(target: Path, level: Level, *, folder: Path) -> None:
    """Compiles all of csrc/*.cpp at once, as many as there are cores, and links. Raises LibraryError."""
    compiler = _compiler()
    if not (_torch_folder() / "include" / "torch" / "library.h").is_file():
        raise LibraryError("this torch comes without its C++ headers", "install torch from its wheels")
    units = sorted(SOURCES.glob("*.cpp"), key=lambda unit: -unit.stat().st_size)
    objects = [folder / f"{unit.stem}.o" for unit in units]
    commands = [
        [compiler, *_options(level), "-c", str(unit), "-o", str(made)]
        for unit, made in zip(units, objects, strict=True)
    ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(_run, commands))
    # OpenMP is not linked: torch has its own loaded, and a second one would bring a second pool of threads.
    _run(
        [
            compiler,
            "-shared",
            *map(str, objects),
            f"-L{_torch_folder() / 'lib'}",
            "-ltorch_cpu",
            "-lc10",
            "-o",
            str(target),
        ]
    )


def _options(level: Level) -> list[str]:
    include = _torch_folder() / "include"
    return [
        "-std=c++20",
        "-O3",
        "-fPIC",
        "-fopenmp",
        "-w",  # the tests' build shows warnings; here nobody could do anything about them
        *level.options,
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-isystem{include}",
        f"-isystem{include / 'torch' / 'csrc' / 'api' / 'include'}",
    ]


def _torch_folder() -> Path:
    return Path(torch.__file__).parent


def _compiler() -> str:
    for name in COMPILERS:
        if path := shutil.which(name):
            return path
    raise LibraryError("no C++ compiler is installed", "install g++ (Debian: apt-get install g++)")


def _run(command: Sequence[str]) -> None:
    in_english = ["env", "LC_ALL=C", *command]  # the messages are searched
    try:
        subprocess.run(in_english, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise LibraryError(f"the build failed: {_first_error(error.stderr)}", "it needs g++ 11 or newer") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LibraryError(f"the build failed: {error}", "it needs g++ 11 or newer") from error


def _first_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "the compiler said nothing")
