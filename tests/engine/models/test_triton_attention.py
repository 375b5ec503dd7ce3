"""The Triton kernels, run by Triton's interpreter on the CPU, against the attention written as the formula reads."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams
from tokenmill_worker.engine.attention import (
    AttentionSpec,
    AttentionStep,
    KVPages,
    activate,
    attention,
    needs_clean_pages,
    rope_attention,
)
from tokenmill_worker.engine.attention.device_rows import TABLE_ALIGNMENT, DeviceRows
from tokenmill_worker.engine.attention.triton import flash
from tokenmill_worker.engine.attention.triton.backend import TritonBackend
from tokenmill_worker.engine.attention.triton.device import INTERPRETER, Device
from tokenmill_worker.engine.attention.triton.plan import Prompts, decode_step
from torch import Tensor
from torch.nn import functional as F

from tests.engine.models.test_attention import Case, Shape, make_case, run
from tests.engine.models.test_cpu_attention import assert_close, poisoned_beyond, rotate, rows, shapes, specs

MANY_SPLITS = Device(num_processors=12, shared_bytes=INTERPRETER.shared_bytes)
# (context, tokens of this step): a whole prompt, a chunk with history, decoding on, before and behind a page's edge
MIXED = [(40, 40), (70, 7), (33, 1), (32, 1), (1, 1)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
SPECS = {
    "plain": AttentionSpec(0.25),
    "window": AttentionSpec(0.25, window=17),
    "window, softcap and sinks": AttentionSpec(0.25, window=33, softcap=2.0, sinks=torch.linspace(-1, 2, 6)),
}


def run_triton(case: Case, spec: AttentionSpec, device: Device = INTERPRETER) -> Tensor:
    pages = KVPages(*(part.clone() for part in case.pages))
    with torch.inference_mode(), activate(case.step, TritonBackend(has_flash=False, device=device)):
        return attention(case.query, case.key, case.value, pages, spec)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_it_agrees_with_the_reference(spec: AttentionSpec) -> None:
    case = make_case(MIXED, Shape())
    assert_close(run_triton(case, spec), run("reference", case, spec))


@pytest.mark.parametrize("shape", [Shape(8, 2, 80, 80), Shape(2, 2, 40, 24)], ids=["80", "40 and 24"])
def test_dimensions_that_are_no_powers_of_two_agree_in_bfloat16(shape: Shape) -> None:
    case, spec = make_case([(34, 3), (33, 1)], shape, torch.bfloat16), AttentionSpec(0.125)
    assert_close(run_triton(case, spec), run("reference", case, spec))


@pytest.mark.parametrize("window", [None, 100])
def test_splits_of_the_keys_come_together(window: int | None) -> None:
    """The long row fills several, the short ones leave most of them empty."""
    case = make_case([(300, 1), (20, 1), (64, 1)], Shape(2, 1))
    spec = AttentionSpec(0.25, window, sinks=torch.tensor([0.5, -1.0]))
    assert_close(run_triton(case, spec, MANY_SPLITS), run("reference", case, spec))


@pytest.mark.parametrize("device", [INTERPRETER, MANY_SPLITS], ids=["whole", "split"])
def test_padding_rows_of_a_decode_step_see_and_store_nothing(device: Device) -> None:
    """Two rows in a graph for four: what a graph reads is tensors of fixed size."""
    case, spec = make_case([(70, 1), (33, 1)], Shape()), AttentionSpec(0.25)
    expected = run("reference", case, spec)
    pages = KVPages(*(part.clone() for part in case.pages))
    query, key, value = (torch.cat([part, part]) for part in (case.query, case.key, case.value))
    with torch.inference_mode(), activate(padded_step(case, 4), TritonBackend(has_flash=False, device=device)):
        result = attention(query, key, value, pages, spec)
    assert_close(result[:2], expected)
    assert not result[2:].any()
    stored = KVPages(*(part.clone() for part in case.pages))
    with torch.inference_mode(), activate(case.step, TritonBackend(has_flash=False)):
        attention(case.query, case.key, case.value, stored, spec)
    assert all(map(torch.equal, pages, stored))


def padded_step(case: Case, num_rows: int) -> AttentionStep:
    batch = case.step.batch
    table = torch.zeros(num_rows, TABLE_ALIGNMENT, dtype=torch.int32)
    for row, view in enumerate(case.step.rows()):
        table[row, : len(view.page_ids)] = torch.as_tensor(view.page_ids)
    num_padding = num_rows - batch.num_rows
    return decode_step(
        DeviceRows(
            slots=torch.as_tensor(np.append(batch.slots, [-1] * num_padding).astype(np.int32)),
            row_starts=torch.arange(num_rows + 1, dtype=torch.int32),
            context_lens=torch.as_tensor(np.append(batch.context_lens, [0] * num_padding).astype(np.int32)),
            page_table=table,
        )
    )


@pytest.mark.parametrize("rotary", [16, 8])
def test_rope_and_attention_in_one_call_are_those_of_two(rotary: int) -> None:
    case, spec = make_case([(36, 4), (40, 1)], Shape()), AttentionSpec(0.25)
    angle = torch.outer(torch.as_tensor(case.step.batch.positions).float(), 0.5 ** torch.arange(rotary // 2))
    cos, sin = (part.repeat(1, 2) for part in (angle.cos(), angle.sin()))
    rotated = case._replace(query=rotate(case.query, cos, sin), key=rotate(case.key, cos, sin))
    qkv = torch.cat([part.flatten(1) for part in (case.query, case.key, case.value)], 1)
    with torch.inference_mode(), activate(case.step, TritonBackend(has_flash=False)):
        fused = rope_attention(qkv, cos, sin, case.pages, spec, num_heads=6)
    assert_close(fused.view(-1, 6, 16), run("reference", rotated, spec))


@pytest.mark.parametrize("window", [None, 5])
def test_what_lies_beyond_a_row_in_its_pages_is_not_read(window: int | None) -> None:
    case, spec = make_case([(40, 3), (33, 1)], Shape()), AttentionSpec(0.25, window)
    assert not needs_clean_pages(TritonBackend(has_flash=False), [case.pages])
    assert torch.isfinite(run_triton(poisoned_beyond(case, window), spec)).all()


def test_a_poisoned_row_keeps_its_poison_to_itself() -> None:
    case, spec = make_case([(40, 3), (33, 1), (35, 1)], Shape()), AttentionSpec(0.25)
    clean = run_triton(case, spec)
    keys = case.pages.keys.clone()
    keys[list(case.step.rows())[1].page_ids.astype(np.int64)] = torch.nan
    with np.errstate(invalid="ignore"):
        result = run_triton(case._replace(pages=case.pages._replace(keys=keys)), spec)
    assert result[3].isnan().all()
    assert torch.equal(result[[0, 1, 2, 4]], clean[[0, 1, 2, 4]])


@pytest.mark.slow
@given(data=st.data(), rows=rows(), shape=shapes(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=60)
def test_it_agrees_with_the_reference_on_random_steps(
    data: st.DataObject, rows: list[tuple[int, int]], shape: Shape, dtype: torch.dtype
) -> None:
    spec, device = data.draw(specs(shape.heads, shape.key_dim)), data.draw(st.sampled_from([INTERPRETER, MANY_SPLITS]))
    case = make_case(rows, shape, dtype)
    assert_close(run_triton(case, spec, device), run("reference", case, spec))


def by_sdpa(query: Tensor, key: Tensor, value: Tensor, prompts: Prompts, spec: AttentionSpec) -> Tensor:
    """What FlashAttention computes, on a CPU, from the very arguments that it is given."""
    result = torch.empty_like(query)
    ends = prompts.starts.tolist()
    assert prompts.longest == max(end - start for start, end in pairwise(ends))
    for start, end in pairwise(ends):
        q, k, v = (part[start:end].transpose(0, 1) for part in (query, key, value))
        own = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=spec.scale, enable_gqa=True)
        result[start:end] = own.transpose(0, 1)
    return result


@pytest.mark.parametrize(
    "rows", [[(34, 34), (3, 3)], [(1, 1), (34, 34), (3, 3), (40, 2), (5, 5)]], ids=["prompts alone", "in company"]
)
def test_whole_prompts_go_to_flash_attention(rows: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "attend", by_sdpa)
    case, spec = make_case(rows, Shape(), torch.bfloat16), AttentionSpec(0.25)
    pages = KVPages(*(part.clone() for part in case.pages))
    with torch.inference_mode(), activate(case.step, TritonBackend(has_flash=True)):
        result = attention(case.query, case.key, case.value, pages, spec)
    assert_close(result, run("reference", case, spec))


def test_flash_attention_takes_what_it_knows() -> None:
    query, key = torch.zeros(1, 4, 64, dtype=torch.bfloat16), torch.zeros(1, 2, 64, dtype=torch.bfloat16)
    assert flash.knows(query, key, key, AttentionSpec(1.0, window=7))
    assert not flash.knows(query, key, key, AttentionSpec(1.0, softcap=3.0))
    assert not flash.knows(query, key, key, AttentionSpec(1.0, sinks=torch.zeros(4)))
    assert not flash.knows(query, key, key[..., :32], AttentionSpec(1.0))
    assert not flash.knows(query.float(), key.float(), key.float(), AttentionSpec(1.0))


def test_this_torch_has_flash_attention_with_the_arguments_used() -> None:
    assert not flash.missing_arguments()
    assert "CUDA" in flash.objection(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt_oss"])
def test_a_model_gives_the_tokens_of_the_reference(architecture: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    """Past the load guard and tier 1's checks, with a prompt in chunks over a page's edge."""
    prompts = [[*range(3, 35)], [5, 6, 7]]
    by_backend = []
    for backend in ("triton", "reference"):
        engine = Engine(tiny_config(str(tiny_checkpoint(architecture)), backend))
        by_backend.append([output.token_ids for output in engine.generate(prompts, GREEDY)])
        assert engine.computing["attention_backend"] == backend
        engine.close()
    assert by_backend[0] == by_backend[1]


def tiny_config(model: str, backend: Literal["triton", "reference"]) -> EngineConfig:
    return EngineConfig(
        model=model,
        dtype="float32",
        device="cpu",
        max_num_seqs=2,
        max_num_batched_tokens=24,
        kv_cache_tokens=256,
        attention_backend=backend,
    )
