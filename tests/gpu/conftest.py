"""Needs torch, transformers, triton, numpy and pytest, and a CUDA device. `make test` does not look in here."""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    assert torch.cuda.is_available(), "tests/gpu needs a CUDA device"
    torch.backends.cuda.matmul.allow_tf32 = False  # identity is a matter of float32
    return torch.device("cuda")
