"""The library's cache and its fallback. The real build runs once, for the tests of what it computes."""

import logging
import threading
from pathlib import Path

import pytest
from tokenmill_worker.engine.attention import backend_named
from tokenmill_worker.engine.attention.cpu import library, toolchain
from tokenmill_worker.engine.attention.cpu.toolchain import GENERIC, LEVELS, Level, LibraryError


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every build that was asked for; each takes no time and makes a file of five bytes."""
    made: list[Path] = []

    def build(target: Path, level: Level, *, folder: Path) -> None:
        made.append(target)
        target.write_bytes(b"bytes")

    monkeypatch.setattr(toolchain, "build", build)
    return made


@pytest.fixture
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "is_loaded", lambda: False)


def test_a_library_is_built_once_and_found_again(builds: list[Path], tmp_path: Path) -> None:
    path = library._build(tmp_path, GENERIC)
    assert library.cached(tmp_path, GENERIC) == path
    assert library._build(tmp_path, GENERIC) == path
    assert len(builds) == 1


def test_two_that_start_at_once_build_once(builds: list[Path], tmp_path: Path) -> None:
    starts = [threading.Thread(target=library._build, args=(tmp_path, GENERIC)) for _ in range(4)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len(builds) == 1


@pytest.mark.parametrize("damage", [b"", b"byt", b"bytes and more"])
def test_a_damaged_library_is_built_again(builds: list[Path], tmp_path: Path, damage: bytes) -> None:
    library._build(tmp_path, GENERIC).write_bytes(damage)
    assert library.cached(tmp_path, GENERIC) is None
    assert library._build(tmp_path, GENERIC).read_bytes() == b"bytes"
    assert len(builds) == 2


def test_each_instruction_set_has_its_own_library() -> None:
    assert len({library.key(level) for level in (*LEVELS, GENERIC)}) == len(LEVELS) + 1


@pytest.mark.usefixtures("_nothing_is_loaded")
def test_without_a_compiler_auto_takes_sdpa_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolchain, "level", lambda: LEVELS[-1])
    with caplog.at_level(logging.WARNING):
        backends = [backend_named("auto", cache_dir=tmp_path) for _ in range(2)]
    assert {(backend.name, backend.note) for backend in backends} == {
        ("sdpa", "no C++ compiler is installed; install g++ (Debian: apt-get install g++)")
    }
    assert sum("install g++" in record.message for record in caplog.records) == 1
    with pytest.raises(LibraryError, match=r"no C\+\+ compiler"):
        backend_named("cpu", cache_dir=tmp_path)


@pytest.mark.usefixtures("_nothing_is_loaded")
def test_a_cpu_without_avx2_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolchain, "level", lambda: GENERIC)
    monkeypatch.setattr(toolchain, "is_too_plain", lambda level: level is GENERIC)
    assert "no AVX2" in backend_named("auto", cache_dir=tmp_path).note


def test_a_failed_build_says_the_compilers_first_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("int f() { return nothing; }")
    with pytest.raises(LibraryError, match=r"error: .nothing. was not declared"):
        toolchain._run([toolchain._compiler(), "-c", str(broken), "-o", str(tmp_path / "broken.o")])
