"""What the load guard found once is believed again, for the same model on the same machine, and for nothing else."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenmill_worker.engine import EngineConfig, guard, loading, remembered
from tokenmill_worker.engine.api import ModelError
from tokenmill_worker.engine.attention.reference import ReferenceBackend
from tokenmill_worker.engine.remembered import Known, Memory

Checkpoint = Callable[[str], Path]

LENGTHS = [3, 2]


def known(fill: float = 1.0) -> Known:
    return Known([torch.full((length, 5), fill) for length in LENGTHS], 0.125)


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    Memory(tmp_path, ["model"]).keep(known())

    recalled = Memory(tmp_path, ["model"]).recall(LENGTHS)

    assert recalled is not None
    assert recalled.allowed == 0.125
    assert all(torch.equal(ours, kept) for ours, kept in zip(recalled.logits, known().logits, strict=True))


def test_another_model_and_other_lengths_are_not_known(tmp_path: Path) -> None:
    Memory(tmp_path, ["model"]).keep(known())

    assert Memory(tmp_path, ["other"]).recall(LENGTHS) is None
    assert Memory(tmp_path, ["model"]).recall([3, 1]) is None


def test_a_broken_file_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = Memory(tmp_path, ["model"])
    memory.keep(known())
    next(tmp_path.glob("*.safetensors")).write_bytes(b"half a fi")

    assert memory.recall(LENGTHS) is None
    assert "is made anew" in caplog.text
    memory.keep(known())
    assert memory.recall(LENGTHS) is not None


def test_the_folder_forgets_what_was_used_longest_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memories = [Memory(tmp_path, [name]) for name in ("first", "second", "third")]
    for number, memory in enumerate(memories[:2]):
        memory.keep(known())
        newest = max(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, (number, number))
    memories[0].recall(LENGTHS)
    monkeypatch.setattr(remembered, "MAX_BYTES", 2 * newest.stat().st_size)

    memories[2].keep(known())

    assert [memory.recall(LENGTHS) is not None for memory in memories] == [True, False, True]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "checked").write_text("a file stands where the folder should")

    Memory(tmp_path / "checked", ["model"]).keep(known())


def test_the_second_load_computes_no_plain_logits(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(model=str(tiny_checkpoint("llama")), dtype="bfloat16", cache_dir=str(tmp_path))
    first = loading.load(config)
    monkeypatch.setattr(guard, "_truth", lambda *_: pytest.fail("the plain forward ran again"))

    second = loading.load(config)

    assert second.runner.fingerprint == first.runner.fingerprint


def test_a_wrong_backend_is_refused_all_the_same(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tiny_checkpoint("llama"))
    config = EngineConfig(model=folder, dtype="float32", cache_dir=str(tmp_path), attention_backend="reference", tier=0)
    loading.load(config)
    attend = ReferenceBackend.attend
    monkeypatch.setattr(ReferenceBackend, "attend", lambda *args, **named: attend(*args, **named) * 0.9)

    with pytest.raises(ModelError, match="cannot run in a packed row"):
        loading.load(config)
