"""The fast attention backends against the one written as the formula reads, on ragged steps of every kind."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tokenmill_worker.engine.attention import (
    AttentionSpec,
    AttentionStep,
    KVPages,
    activate,
    attention,
    backend_named,
)
from tokenmill_worker.engine.batch import PAGE_SIZE, PackedBatch
from torch import Tensor


class Shape(NamedTuple):
    heads: int = 6
    kv_heads: int = 2
    key_dim: int = 16
    value_dim: int = 16


class Case(NamedTuple):
    """One step over a pool that earlier steps filled."""

    step: AttentionStep
    query: Tensor
    key: Tensor
    value: Tensor
    pages: KVPages


# (context, tokens of this step) per row: fresh prompts, chunks with history and decode rows, on and off page borders
RAGGED = [(1, 1), (32, 32), (70, 70), (70, 7), (64, 32), (33, 1), (64, 1), (65, 1), (200, 1), (5, 2)]


def make_case(rows: Sequence[tuple[int, int]], shape: Shape, dtype: torch.dtype = torch.float32) -> Case:
    draw, noise = np.random.default_rng(3), torch.Generator().manual_seed(3)
    tables, num_pages = scattered_pages([context for context, _ in rows], draw)
    positions = [np.arange(context - num, context) for context, num in rows]
    slots = [
        table[own // PAGE_SIZE] * PAGE_SIZE + own % PAGE_SIZE for table, own in zip(tables, positions, strict=True)
    ]
    batch = PackedBatch(
        token_ids=int32(np.concatenate(positions)),
        positions=int32(np.concatenate(positions)),
        slots=int32(np.concatenate(slots)),
        row_starts=int32(np.cumsum([0, *(num for _, num in rows)])),
        context_lens=int32([context for context, _ in rows]),
        page_ids=int32(np.concatenate(tables)),
        page_starts=int32(np.cumsum([0, *map(len, tables)])),
    )

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=noise).to(dtype)

    return Case(
        step=AttentionStep.of(batch, torch.as_tensor(batch.slots.astype(np.int64))),
        query=random(batch.num_tokens, shape.heads, shape.key_dim),
        key=random(batch.num_tokens, shape.kv_heads, shape.key_dim),
        value=random(batch.num_tokens, shape.kv_heads, shape.value_dim),
        pages=KVPages(
            random(num_pages, shape.kv_heads, PAGE_SIZE, shape.key_dim),
            random(num_pages, shape.kv_heads, PAGE_SIZE, shape.value_dim),
        ),
    )


def scattered_pages(contexts: Sequence[int], draw: np.random.Generator) -> tuple[list[np.ndarray], int]:
    counts = [-(-context // PAGE_SIZE) for context in contexts]
    pages = draw.permutation(sum(counts))
    return np.split(pages, np.cumsum(counts)[:-1]), len(pages)


def int32(values: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.int32)


def run(backend: str, case: Case, spec: AttentionSpec) -> Tensor:
    pages = library_order(case.pages) if backend == "cpu" else KVPages(*(part.clone() for part in case.pages))
    with torch.inference_mode(), activate(case.step, backend_named(backend)):
        return attention(case.query, case.key, case.value, pages, spec)


def library_order(pages: KVPages) -> KVPages:
    """The history of earlier steps as the C++ library would have left it (csrc/kernels.h)."""
    keys, values = pages
    per_word = 4 // keys.element_size()
    words = keys.view(*keys.shape[:3], -1, per_word).transpose(2, 3)  # [..., key_dim / W, 32, W]
    pairs = values.view(*values.shape[:2], -1, per_word, values.shape[3]).transpose(3, 4)  # [..., 32 / W, value_dim, W]
    return KVPages(words.reshape(keys.shape), pairs.reshape(values.shape))


SPECS = {
    "plain": AttentionSpec(0.25),
    "window": AttentionSpec(0.25, window=17),
    "window of a page": AttentionSpec(0.25, window=PAGE_SIZE),
    "softcap": AttentionSpec(0.25, softcap=2.0),
    "softcap and window": AttentionSpec(0.25, window=17, softcap=2.0),
    "sinks": AttentionSpec(0.25, sinks=torch.linspace(-1, 2, 6)),
    "sinks and window": AttentionSpec(0.25, window=17, sinks=torch.linspace(-1, 2, 6)),
}
SHAPES = {
    "grouped": Shape(),
    "one head each": Shape(heads=6, kv_heads=6),
    "one kv head": Shape(kv_heads=1),
    "narrow values": Shape(value_dim=8),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("backend", ["cpu", "sdpa"])
def test_a_fast_backend_agrees_with_the_reference(backend: str, shape: Shape, spec: AttentionSpec) -> None:
    case = make_case(RAGGED, shape)
    torch.testing.assert_close(run(backend, case, spec), run("reference", case, spec), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("backend", ["cpu", "sdpa"])
def test_a_fast_backend_agrees_with_the_reference_in_bfloat16(backend: str, spec: AttentionSpec) -> None:
    case = make_case(RAGGED, Shape(), torch.bfloat16)
    torch.testing.assert_close(run(backend, case, spec), run("reference", case, spec), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("backend", ["cpu", "sdpa", "reference"])
def test_a_row_is_attended_alone_as_in_company(backend: str) -> None:
    spec = AttentionSpec(0.25, window=50)
    case = make_case(RAGGED, Shape())
    together = run(backend, case, spec)
    for row, view in enumerate(case.step.rows()):
        alone = row_alone(case, row)
        expected = together[view.start : view.end]
        torch.testing.assert_close(run(backend, alone, spec), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("backend", ["cpu", "sdpa", "reference"])
def test_a_poisoned_row_does_not_reach_its_neighbours(backend: str, spec: AttentionSpec) -> None:
    case = make_case(RAGGED, Shape())
    clean = run(backend, case, spec)
    for poisoned in (3, 5):  # a chunk, a decode row
        view = list(case.step.rows())[poisoned]
        keys, values = (part.clone() for part in case.pages)
        keys[view.page_ids.astype(np.int64)] = torch.nan
        values[view.page_ids.astype(np.int64)] = torch.nan
        result = run(backend, case._replace(pages=KVPages(keys, values)), spec)
        others = [token for token in range(len(clean)) if not view.start <= token < view.end]
        torch.testing.assert_close(result[others], clean[others], rtol=1e-5, atol=1e-5)


def row_alone(case: Case, row: int) -> Case:
    batch = case.step.batch
    tokens = slice(batch.row_starts[row], batch.row_starts[row + 1])
    pages = batch.page_ids[batch.page_starts[row] : batch.page_starts[row + 1]]
    alone = PackedBatch(
        token_ids=batch.token_ids[tokens],
        positions=batch.positions[tokens],
        slots=batch.slots[tokens],
        row_starts=int32([0, tokens.stop - tokens.start]),
        context_lens=batch.context_lens[row : row + 1],
        page_ids=pages,
        page_starts=int32([0, len(pages)]),
    )
    step = AttentionStep.of(alone, torch.as_tensor(alone.slots.astype(np.int64)))
    return Case(step, case.query[tokens], case.key[tokens], case.value[tokens], case.pages)
