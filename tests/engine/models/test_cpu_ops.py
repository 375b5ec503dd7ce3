"""The C++ companions of attention against the lines of transformers that they stand for, rounding included."""

import pytest
import torch
from tokenmill_worker.engine.attention import backend_named
from torch import Tensor
from torch.nn import functional as F

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 576), (5, 40), (130, 577)]


@pytest.fixture(autouse=True, scope="module")
def _library() -> None:
    assert backend_named("cpu").name == "cpu"


def random(*sizes: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(sum(sizes))).to(dtype)


def llama_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def gemma_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return ((wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)) * (1.0 + weight.float())).to(x.dtype)


def assert_rounds_alike(ours: Tensor, theirs: Tensor) -> None:
    """To the bit, but for the few elements where another order of summation tips a rounding."""
    torch.testing.assert_close(ours, theirs, rtol=2e-2 if ours.dtype == torch.bfloat16 else 2e-6, atol=1e-6)
    if ours.dtype == torch.bfloat16:
        assert (ours != theirs).float().mean() < 0.02


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norms(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight = random(*shape, dtype=dtype), random(shape[1], dtype=dtype)
    assert_rounds_alike(torch.ops.tokenmill_cpu.rms_norm(x, weight, 1e-5, 0.0), llama_norm(x, weight))
    assert_rounds_alike(torch.ops.tokenmill_cpu.rms_norm(x, weight, 1e-5, 1.0), gemma_norm(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_adding_to_the_residual_and_its_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    residual, x, weight = (
        random(*shape, dtype=dtype),
        random(*shape, dtype=dtype).flip(0),
        random(shape[1], dtype=dtype),
    )
    expected = residual + x
    normed = torch.ops.tokenmill_cpu.add_rms_norm(residual, x, weight, 1e-5, 0.0)
    assert torch.equal(residual, expected)
    assert_rounds_alike(normed, llama_norm(expected, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_activations(shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate, up = 4 * random(*shape, dtype=dtype), random(*shape, dtype=dtype).flip(0)
    both = torch.cat([gate, up], 1)
    assert_rounds_alike(torch.ops.tokenmill_cpu.act_mul(both, "silu"), F.silu(gate) * up)
    ours = torch.ops.tokenmill_cpu.act_mul(both, "gelu_tanh")
    torch.testing.assert_close(ours, F.gelu(gate, approximate="tanh") * up, rtol=2e-2, atol=1e-5)


def test_activations_of_what_is_not_finite() -> None:
    gate = torch.tensor([[-1e30, -200.0, 200.0, 1e30, torch.nan]])
    result = torch.ops.tokenmill_cpu.act_mul(torch.cat([gate, torch.ones_like(gate)], 1), "silu")
    assert torch.equal(result[0, :4], torch.tensor([-0.0, -0.0, 200.0, 1e30]))
    assert result[0, 4].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 15, 16, 17, 1000])
def test_argmax_is_the_lowest_index_of_the_maximum(width: int, dtype: torch.dtype) -> None:
    logits = random(7, width, dtype=dtype).round()  # many are equal
    logits[3] = -torch.inf
    assert torch.equal(torch.ops.tokenmill_cpu.argmax(logits), logits.float().argmax(-1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_argmax_tells_rows_with_a_nan_from_the_others(dtype: torch.dtype) -> None:
    logits = random(3, 100, dtype=dtype)
    logits[1, 98] = torch.nan
    assert (torch.ops.tokenmill_cpu.argmax(logits) == -1).tolist() == [False, True, False]


def test_another_dtype_is_refused() -> None:
    with pytest.raises(RuntimeError, match="takes float32 and bfloat16, not Half"):
        torch.ops.tokenmill_cpu.argmax(torch.zeros(1, 4, dtype=torch.float16))


def test_shapes_are_known_without_computing() -> None:
    x, ops = torch.empty(3, 8, device="meta"), torch.ops.tokenmill_cpu
    assert ops.rms_norm(x, x[0], 1e-5, 0.0).shape == (3, 8)
    assert ops.act_mul(x, "silu").shape == (3, 4)
    assert ops.argmax(x).shape == (3,)
