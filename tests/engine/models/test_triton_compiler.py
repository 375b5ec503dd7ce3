"""The Triton kernels compiled for an H200, down to its own instructions: what the interpreter would forgive."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.models.compile_kernels import CASES, H200_SHARED_BYTES, ROWS

HALVES = [name for name, case in CASES.items() if case.dtype.itemsize == 2]


def compile_cases(cache_dir: Path, *names: str) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.engine.models.compile_kernels", str(cache_dir), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_fit(kernels: list[dict[str, Any]]) -> None:
    """One program's shared memory is there, nothing spills in half precision, chunks use the warp groups' products."""
    for kernel in kernels:
        assert kernel["target"] == "sm_90a"
        assert kernel["shared_bytes"] <= H200_SHARED_BYTES, kernel
        if kernel["case"] in HALVES:
            assert kernel["stack_bytes"] == 0, kernel
    products = {(kernel["case"], kernel["products"]) for kernel in kernels if kernel["kernel"] == "attend"}
    halves = {kernel["case"] for kernel in kernels} & {*HALVES}
    assert {case for case, product in products if product == "wgmma"} == halves


def test_the_kernels_of_a_common_model_compile(tmp_path: Path) -> None:
    kernels = compile_cases(tmp_path, "llama 8b")
    assert len(kernels) > len(ROWS) * 2
    assert {kernel["kernel"] for kernel in kernels} == {"store", "attend", "merge"}
    assert_fit(kernels)


@pytest.mark.slow
def test_the_kernels_of_all_kinds_compile(tmp_path: Path) -> None:
    kernels = compile_cases(tmp_path)
    assert {kernel["case"] for kernel in kernels} == {*CASES}
    assert_fit(kernels)
