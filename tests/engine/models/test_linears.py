"""The C++ library's packed linears: against plain products, against each other, and row by row."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill_worker.engine.attention.cpu import library
from tokenmill_worker.engine.attention.cpu.linears import (
    MAX_INPUTS,
    Bfloat16Linear,
    W8A8Linear,
    W8A16Linear,
    quantize,
)
from torch import Tensor

Kind = type[W8A8Linear] | type[W8A16Linear] | type[Bfloat16Linear]

KINDS: tuple[Kind, ...] = (W8A8Linear, W8A16Linear, Bfloat16Linear)
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 4e-3}  # of the largest result; bfloat16 has 8 bits
HALF_A_LEVEL = 0.5  # of an activation: the portable and the fast kernel may round a tie differently


@pytest.fixture(autouse=True, scope="session")
def _library() -> None:
    library.load(Path.home() / ".cache" / "tokenmill")


class Case(NamedTuple):
    weight: Tensor
    bias: Tensor | None
    x: Tensor


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows = draw(st.sampled_from([1, 2, 3, 7, 12, 13, 14, 15, 28, 29, 65]))
    outputs, inputs = draw(st.integers(1, 130)), draw(st.integers(1, 150))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    weight = torch.randn(outputs, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator) if draw(st.booleans()) else None
    shift = draw(st.sampled_from([0.0, 3.0, -3.0]))  # rows on one side of zero use the zero point to the full
    return Case(weight, bias, (torch.randn(rows, inputs, generator=generator) + shift).to(dtype))


def in_levels(x: Tensor) -> Tensor:
    """What w8a8 makes of the activations, in plain words."""
    wide = x.float()
    low, high = wide.amin(1, keepdim=True).clamp_max(0), wide.amax(1, keepdim=True).clamp_min(0)
    scale = (high - low) / 255
    zero_point = torch.round(-low / scale)
    levels = torch.round(torch.addcmul(zero_point, wide, 1 / scale)).clamp(0, 255)
    return (levels - zero_point) * scale


def expected(kind: Kind, case: Case) -> Tensor:
    x = in_levels(case.x) if kind is W8A8Linear else case.x.bfloat16()
    weight = case.weight.bfloat16() if kind is Bfloat16Linear else quantize(case.weight).dequantized()
    product = x.double() @ weight.double().T
    return product if case.bias is None else product + case.bias.double()


def step(kind: Kind, case: Case) -> float:
    """How far a result moves when one activation is rounded the other way."""
    if kind is not W8A8Linear:
        return 0.0
    spread = case.x.float().amax(1).clamp_min(0) - case.x.float().amin(1).clamp_max(0)
    return HALF_A_LEVEL * 2 * float(spread.max() / 255 * case.weight.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_a_packed_linear_is_its_own_dequantized_product(kind: Kind, case: Case) -> None:
    result, truth = kind(case.weight, case.bias)(case.x), expected(kind, case)
    assert result.dtype == case.x.dtype
    allowed = TOLERANCES[case.x.dtype] * max(1.0, float(truth.abs().max())) + step(kind, case)
    assert float((result.double() - truth).abs().max()) <= allowed


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(case=cases())
def test_a_row_does_not_depend_on_the_rows_beside_it(kind: Kind, case: Case) -> None:
    linear = kind(case.weight, case.bias)
    together = linear(case.x)
    alone = torch.cat([linear(row[None]) for row in case.x])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(case=cases())
def test_the_portable_kernels_agree_with_the_fast_ones(kind: Kind, case: Case) -> None:
    linear = kind(case.weight, case.bias)
    fast = linear(case.x)
    linear._product = partial(linear._product, portable=True)  # type: ignore[assignment]  # in place of the op
    portable = linear(case.x)
    allowed = TOLERANCES[case.x.dtype] * max(1.0, float(fast.float().abs().max())) + step(kind, case)
    assert float((fast.float() - portable.float()).abs().max()) <= allowed


@pytest.mark.parametrize("portable", [False, True])
def test_factors_move_the_rounding_and_not_the_product(portable: bool) -> None:
    weight, x, factors = torch.randn(50, 40), torch.randn(5, 40), torch.ones(40)
    x[:, 3] *= 100  # an input that would leave the others few levels
    weight[:, 3] /= 100
    factors[3] = 1 / 64
    truth, errors = x @ weight.T, []
    for linear in (W8A8Linear(weight, None), W8A8Linear(weight, None, factors)):
        linear._product = partial(linear._product, portable=portable)  # type: ignore[assignment]  # in place of the op
        errors.append(float((linear(x) - truth).abs().mean()))
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strange", [float("nan"), float("inf"), float("-inf")])
def test_a_strange_value_spoils_its_own_row_alone(kind: Kind, strange: float) -> None:
    x = torch.randn(3, 40)
    x[1, 7] = strange
    result = kind(torch.rand(50, 40) + 0.1, None)(x)
    assert not torch.isfinite(result[1]).any()
    assert torch.isfinite(result[[0, 2]]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_give_the_bias(kind: Kind) -> None:
    bias = torch.randn(50)
    assert torch.equal(kind(torch.randn(50, 40), bias)(torch.zeros(2, 40)), bias.expand(2, -1))
    assert torch.equal(kind(torch.zeros(50, 40), bias)(torch.randn(2, 40)), bias.expand(2, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_give_no_rows(kind: Kind) -> None:
    assert kind(torch.randn(50, 40), None)(torch.randn(0, 40)).shape == (0, 50)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_rows", [1, 20, 50, 70, 130])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_result_does_not_depend_on_the_number_of_threads(kind: Kind, num_rows: int, dtype: torch.dtype) -> None:
    linear, x = kind(torch.randn(200, 64), None), torch.randn(num_rows, 64, dtype=dtype)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(linear(x))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("kind", KINDS)
def test_another_width_is_refused(kind: Kind) -> None:
    with pytest.raises(RuntimeError, match="another shape"):
        kind(torch.randn(8, 40), None)(torch.randn(1, 80))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_of_the_other_kind_is_refused(kind: Kind) -> None:
    with pytest.raises(RuntimeError, match="float32 or bfloat16"):
        kind(torch.randn(8, 40), None)(torch.randn(1, 40).half())


def test_too_many_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="inputs"):
        W8A8Linear(torch.zeros(1, MAX_INPUTS + 1), None)
