"""Memory of a device: how the pool is sized, and a step that finds none left."""

import numpy as np
import pytest
import torch
from tokenmill_worker.engine import EngineConfig, SamplingParams, sizing
from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.api import EngineError
from tokenmill_worker.engine.attention import backend_named
from tokenmill_worker.engine.batch import PackedBatch
from tokenmill_worker.engine.compilation import compile_layers
from tokenmill_worker.engine.memory import usable_bytes
from torch import Tensor
from transformers import PreTrainedModel

from tests.engine.models.test_overlap import assert_same, engine_of, model, prompt
from tests.engine.models.tiny import PACKABLE, make_model

__all__ = ["model"]
GB = 1 << 30


@pytest.mark.parametrize(
    ("free", "utilization", "usable"), [(100, 0.9, 86), (100, 1.0, 100), (14, 0.9, 0), (3, 0.9, 0)]
)
def test_the_pool_leaves_its_share_of_the_device_to_others(free: int, utilization: float, usable: int) -> None:
    assert usable_bytes(free * GB, 140 * GB, utilization=utilization) // GB == usable


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(EngineError, match="gpu_memory_utilization must be above 0"):
        EngineConfig(gpu_memory_utilization=0.0)


@pytest.mark.parametrize(("rows", "budget", "lengths"), [(4, 50, [13, 13, 12, 12]), (64, 3, [1, 1, 1]), (1, 500, [90])])
def test_the_largest_step_has_all_rows_and_all_tokens_and_draws_for_each_row(
    rows: int, budget: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[list[int], int]] = []
    real = Adapter.logits

    def watched(self: Adapter, batch: PackedBatch, keep: np.ndarray) -> Tensor:
        ran.append((np.diff(batch.row_starts).tolist(), len(keep)))
        return real(self, batch, keep)

    monkeypatch.setattr(Adapter, "logits", watched)
    adapter = Adapter(make_model(PACKABLE["llama"]()), backend_named("sdpa"))
    config = EngineConfig(max_num_seqs=rows, max_num_batched_tokens=budget)
    sizing.run_largest_step(adapter, config, max_model_len=90)
    assert ran == [(lengths, len(lengths))]


@pytest.mark.parametrize("overlap", [True, False])
def test_a_step_without_memory_preempts_the_youngest_and_kills_nobody(
    model: PreTrainedModel, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [prompt(length) for length in (9, 20, 33, 12, 40)]
    params = SamplingParams(temperature=0.9, max_tokens=20, ignore_eos=True)
    expected = engine_of(model, overlap=False).generate(prompts, params)
    real = Adapter.logits

    def small(self: Adapter, batch: PackedBatch, keep: np.ndarray, last: Tensor | None = None) -> Tensor:
        if batch.num_rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, batch, keep, last)

    monkeypatch.setattr(Adapter, "logits", small)
    engine = engine_of(model, overlap=overlap)
    assert_same(engine.generate(prompts, params), expected)
    assert engine.statistics().num_preemptions > 0


@pytest.mark.slow
def test_layers_are_compiled_one_by_one_and_compute_the_same() -> None:
    own = make_model(PACKABLE["llama"]())
    prompts = [prompt(9), prompt(40)]
    params = SamplingParams(temperature=0.0, max_tokens=6)
    expected = engine_of(own, overlap=False).generate(prompts, params)
    assert compile_layers(Adapter(own, backend_named("sdpa")), backend="eager") == 3
    assert_same(engine_of(own, overlap=False).generate(prompts, params), expected)
