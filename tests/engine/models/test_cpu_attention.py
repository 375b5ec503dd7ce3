"""The C++ attention on random ragged steps: right, the same to the bit in any company, and blind to what is not its."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill_worker.engine.attention import AttentionSpec, KVPages, backend_named
from tokenmill_worker.engine.attention.cpu.backend import indices
from tokenmill_worker.engine.batch import PAGE_SIZE
from torch import Tensor

from tests.engine.models.test_attention import (
    Case,
    Shape,
    library_order,
    make_case,
    row_alone,
    run,
)

TOLERANCE = {torch.float32: (1e-4, 2e-5), torch.bfloat16: (0.03, 0.03)}  # relative, absolute
MANY_PAGES = 24 * PAGE_SIZE  # long enough that a decode row's context is cut into pieces


@pytest.fixture(autouse=True, scope="module")
def _library() -> None:
    assert backend_named("cpu").name == "cpu"


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    rtol, atol = TOLERANCE[ours.dtype]
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[int, int]]:
    """(context, tokens of this step) of each row."""
    lengths = st.one_of(st.integers(1, 100), st.sampled_from([PAGE_SIZE, 2 * PAGE_SIZE, MANY_PAGES, MANY_PAGES + 1]))
    contexts = draw(st.lists(lengths, min_size=1, max_size=5))
    return [(context, draw(st.sampled_from([1, 1, min(context, 7), min(context, 100)]))) for context in contexts]


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    dims = st.sampled_from([8, 16, 24, 40, 64, 80, 128, 256])
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    key_dim = draw(dims)
    return Shape(draw(st.sampled_from([1, 2, 3, 5, 8, 16])) * kv_heads, kv_heads, key_dim, draw(dims))


@st.composite
def specs(draw: st.DrawFn, heads: int, key_dim: int) -> AttentionSpec:
    window = draw(st.sampled_from([None, None, 1, 17, PAGE_SIZE, 50]))
    softcap = draw(st.sampled_from([None, 3.0]))
    sinks = draw(st.sampled_from([None, torch.linspace(-1, 2, heads)]))
    return AttentionSpec(key_dim**-0.5, window, softcap, sinks)


@given(data=st.data(), rows=rows(), shape=shapes(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=60)
def test_it_agrees_with_the_reference(
    data: st.DataObject, rows: list[tuple[int, int]], shape: Shape, dtype: torch.dtype
) -> None:
    spec = data.draw(specs(shape.heads, shape.key_dim))
    case = make_case(rows, shape, dtype)
    assert_close(run("cpu", case, spec), run("reference", case, spec))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_to_the_bit_alone_and_on_more_threads(dtype: torch.dtype) -> None:
    case = make_case([(MANY_PAGES, 1), (70, 70), (200, 1), (MANY_PAGES + 40, 3)], Shape(9, 3, 64, 64), dtype)
    spec = AttentionSpec(0.125)
    together = run("cpu", case, spec)
    torch.set_num_threads(2)
    try:
        assert torch.equal(run("cpu", case, spec), together)
    finally:
        torch.set_num_threads(1)
    for row, view in enumerate(case.step.rows()):
        assert torch.equal(run("cpu", row_alone(case, row), spec), together[view.start : view.end])


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [[(1, 1)], [(33, 1), (64, 3)], [(45, 45)], [(MANY_PAGES - 3, 1)]])
def test_what_lies_beyond_a_row_in_its_pages_is_not_read(
    rows: list[tuple[int, int]], dtype: torch.dtype, window: int | None
) -> None:
    case, spec = make_case(rows, Shape(), dtype), AttentionSpec(0.25, window)
    assert torch.isfinite(run("cpu", poisoned_beyond(case, window), spec)).all()


def poisoned_beyond(case: Case, window: int | None) -> Case:
    """NaN in every slot that no token of the step may see."""
    keys, values = (part.clone() for part in case.pages)
    for row in case.step.rows():
        first = 0 if window is None else max(0, row.context - row.num_tokens - window + 1)
        for position in [*range(first), *range(row.context, len(row.page_ids) * PAGE_SIZE)]:
            page = int(row.page_ids[position // PAGE_SIZE])
            keys[page, :, position % PAGE_SIZE] = torch.nan
            values[page, :, position % PAGE_SIZE] = torch.nan
    return case._replace(pages=KVPages(keys, values))


@pytest.mark.parametrize("rotary", [64, 32])
@pytest.mark.parametrize("angles", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rope_and_attention_in_one_call_are_those_of_two(dtype: torch.dtype, angles: torch.dtype, rotary: int) -> None:
    if dtype == torch.float32:
        angles = torch.float32
    case, spec = make_case([(70, 70), (40, 1), (33, 2)], Shape(6, 2, 64, 64), dtype), AttentionSpec(0.125, 50)
    angle = torch.outer(torch.as_tensor(case.step.batch.positions).float(), 0.5 ** torch.arange(rotary // 2))
    cos, sin = (part.repeat(1, 2).to(angles) for part in (angle.cos(), angle.sin()))
    rotated = case._replace(query=rotate(case.query, cos, sin), key=rotate(case.key, cos, sin))
    qkv = torch.cat([part.flatten(1) for part in (case.query, case.key, case.value)], 1)
    pages = library_order(case.pages)
    fused = torch.ops.tokenmill_cpu.rope_attention(qkv, cos, sin, *pages, *indices(case.step), 6, 2, *spec)
    assert_close(fused.view(-1, 6, 64), run("reference", rotated, spec))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turning, passing = x.float()[..., : cos.shape[1]], x.float()[..., cos.shape[1] :]
    left, right = turning.chunk(2, 2)
    turned = turning * cos.float()[:, None] + torch.cat([-right, left], 2) * sin.float()[:, None]
    return torch.cat([turned, passing], 2).to(x.dtype)


def test_strided_queries_are_taken_as_they_are() -> None:
    case, spec = make_case([(70, 70), (40, 1)], Shape()), AttentionSpec(0.25)
    heads_first = case._replace(query=case.query.transpose(0, 1).contiguous().transpose(0, 1))
    assert torch.equal(run("cpu", heads_first, spec), run("cpu", case, spec))


def test_indices_that_do_not_fit_are_refused() -> None:
    case = make_case([(5, 5)], Shape())
    row_starts, *others = indices(case.step)
    wrong = row_starts - torch.tensor([0, 1], dtype=torch.int32)
    tokens = (case.query, case.key, case.value)
    with pytest.raises(RuntimeError, match="the rows own 4 of 5 tokens"):
        torch.ops.tokenmill_cpu.attention(*tokens, *case.pages, wrong, *others, *AttentionSpec(1.0))
