"""Two processes that share a model say what one says: real processes, gloo on the CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenmill.lifeline import tied_to_us
from tokenmill_worker.engine.api import EngineConfig, EngineError
from tokenmill_worker.engine.engine import Engine

from tests.engine.models.conftest import tiny_checkpoint as tiny_checkpoint
from tests.engine.parallel.work import Answers, answers

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "HOME": os.path.expanduser("~")}
ALL = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "gpt_neox", "olmo2", "cohere2", "granite")
MORE = ("mixtral", "deepseek_v3", "starcoder2", "gemma3n")
LOGGED = (
    "Tier 0: 2 processes share the model, 99% of its weights are shared out; "
    "its logits are those of the unsharded model"
)

Checkpoint = Callable[[str], Path]


def of_two(folders: list[Path], result: Path) -> dict[str, Answers]:
    """What rank 0 of two wrote down. The second one is killed in the end."""
    launch = [sys.executable, "-m", "tests.engine.parallel.work", str(result), "2", *map(str, folders)]
    done = subprocess.run(
        tied_to_us(launch), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
    )
    assert result.exists(), done.stderr
    found: dict[str, Answers] = json.loads(result.read_text())
    return found


def assert_as_one(names: tuple[str, ...], checkpoint: Checkpoint, tmp_path: Path) -> dict[str, Answers]:
    folders = [checkpoint(name) for name in names]
    found = of_two(folders, tmp_path / "answers.json")
    for name, folder in zip(names, folders, strict=True):
        assert found[str(folder)] == {**answers(folder, 1), "tensor_parallel_size": "2"}, name
        assert found[str(folder)]["was preempted"], name
        assert found[str(folder)]["had prefix hits"], name
    return found


def test_two_processes_give_what_one_gives_and_one_that_loses_the_other_ends(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """One launch for all of it: starting processes takes longer than what they do."""
    found = assert_as_one(("llama",), tiny_checkpoint, tmp_path)
    assert found["logged"]["lines"] == [LOGGED, LOGGED]  # it is loaded once more to be lost
    assert "have to start anew" in str(found["lost"]["error"])


@pytest.mark.slow
def test_every_architecture_with_a_plan_gives_the_tokens_of_one(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert_as_one((*ALL, *MORE), tiny_checkpoint, tmp_path)


def test_an_engine_that_torchrun_did_not_start_says_how_to_start_it(tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(EngineError, match="torchrun --nproc-per-node 2"):
        Engine(EngineConfig(model=str(tiny_checkpoint("llama")), device="cpu", tensor_parallel_size=2))
