"""Tiny checkpoints, each saved once for the session."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.engine.models.tiny import PACKABLE, save_model


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny products gain nothing from threads, and threads that spin take the other tests' cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model of the named architecture, without a tokenizer."""

    @cache
    def folder_of(architecture: str) -> Path:
        return save_model(PACKABLE[architecture](), tmp_path_factory.mktemp(architecture))

    return folder_of
