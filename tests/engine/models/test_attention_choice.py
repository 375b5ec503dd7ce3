"""Which attention runs where: the device's own, or what stands in for it, with the reason."""

import sys

import pytest
import torch
from tokenmill_worker.engine.attention import backend_named
from tokenmill_worker.engine.attention.triton import probe
from tokenmill_worker.engine.attention.triton.probe import TritonError


@pytest.fixture(autouse=True)
def _ask_anew() -> None:
    probe.triton_backend.cache_clear()


def test_a_gpu_without_triton_runs_on_torchs_own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    backend = backend_named("auto", device="cuda")
    assert backend.name == "sdpa"
    assert "triton is not installed" in backend.note
    with pytest.raises(TritonError, match="pip install triton"):
        backend_named("triton", device="cuda")


def test_the_interpreter_does_not_stand_in_for_a_gpu() -> None:
    assert "TRITON_INTERPRET" in backend_named("auto", device="cuda").note


def test_triton_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(TritonError, match="needs a CUDA device"):
        backend_named("triton", device="cpu")


def test_triton_is_tried_before_it_is_used() -> None:
    assert backend_named("triton", device="cpu").name == "triton"


def test_kernels_that_compute_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_attended", lambda backend, device: torch.full((1,), float(backend.name == "triton")))
    with pytest.raises(TritonError, match=r"differ from the reference by 1\.0e\+00"):
        backend_named("triton", device="cpu")


def test_kernels_that_do_not_compile_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FileNotFoundError("gcc")

    monkeypatch.setattr(probe, "_attended", fail)
    with pytest.raises(TritonError, match="FileNotFoundError: gcc; triton needs a C compiler"):
        backend_named("triton", device="cpu")
