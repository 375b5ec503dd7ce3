"""Tier 1 computes what tier 0 does: layer by layer, part by part, and not at all where it would not."""

import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenmill_worker.engine import EngineConfig, loading, surgery
from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.attention import backend_named
from tokenmill_worker.engine.guard import Truth, check
from tokenmill_worker.engine.surgery.fused import Stack
from tokenmill_worker.engine.surgery.linear import PlainLinear, make_linear
from tokenmill_worker.engine.surgery.norm import rms_norm_of
from tokenmill_worker.engine.surgery.ops import LIBRARY, PLAIN, Ops
from tokenmill_worker.engine.surgery.pieces import Replaced
from tokenmill_worker.engine.surgery.program import Program
from tokenmill_worker.engine.surgery.recognition import Materials
from torch import Tensor, nn

from tests.engine.models.tiny import PACKABLE, make_model

WHOLLY_REBUILT = {
    "gemma2",
    "gemma3",
    "gpt_oss",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "starcoder2",
}


def packed(architecture: str, dtype: torch.dtype = torch.float32, backend: str = "sdpa") -> tuple[Adapter, Truth]:
    model = make_model(PACKABLE[architecture]())
    for part in (*model.parameters(), *model.buffers()):
        part.data = part.data.to(dtype) if part.dim() > 0 else part.data
    adapter = Adapter(model, backend_named(backend))
    return adapter, check(adapter, window=None, longest=256)


def operate(adapter: Adapter, truth: Truth, materials: Materials | None = None) -> surgery.Report:
    return surgery.operate(adapter, truth.first_step(adapter), materials)


@pytest.mark.parametrize("architecture", sorted(PACKABLE))
def test_what_is_understood_is_rebuilt_and_the_rest_done_piece_by_piece(architecture: str) -> None:
    adapter, truth = packed(architecture)
    report = operate(adapter, truth)
    truth.check(adapter)
    if architecture in WHOLLY_REBUILT:
        assert report.num_rebuilt == report.num_layers
        assert report.has_program
        assert report.reasons == ()
    else:
        assert report.num_rebuilt == 0
        assert report.pieces.linears > 0


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_a_step_in_which_no_row_reaches_its_end_has_no_logits(architecture: str) -> None:
    adapter, truth = packed(architecture)
    operate(adapter, truth)
    logits = adapter.logits(truth.first_step(adapter), np.zeros(0, dtype=np.int32))
    assert logits.shape == (0, adapter.vocab_size)


@pytest.mark.parametrize("backend", ["sdpa", "auto"])
def test_half_precision_is_as_near_to_float32_as_the_model_itself(backend: str) -> None:
    adapter, truth = packed("llama", torch.bfloat16, backend)
    assert operate(adapter, truth).has_program
    truth.check(adapter)


def test_layers_in_one_call_are_the_layers_part_by_part_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.ops.tokenmill_cpu.has_fast_bfloat16():
        return  # oneDNN's products are taken there, and layers run part by part
    adapter, truth = packed("llama", torch.bfloat16, "cpu")
    operate(adapter, truth)
    program = adapter.program
    assert isinstance(program, Program)
    assert all(layer.fusion is not None for layer, _ in program.layers)
    batch = truth.first_step(adapter)
    keep = np.arange(3, batch.num_tokens)
    fused = adapter.logits(batch, keep)
    monkeypatch.setattr(Stack, "run", lambda *_: None)
    assert torch.equal(adapter.logits(batch, keep), fused)


@pytest.mark.parametrize("num_threads", [2, 7])
def test_layers_in_one_call_say_the_same_whoever_comes_to_help(num_threads: int) -> None:
    """More threads than cores: some come too late for a product, and others do their part."""
    adapter, truth = packed("llama", torch.bfloat16, "cpu")
    operate(adapter, truth)
    batch, before = truth.first_step(adapter), torch.get_num_threads()
    keep = np.arange(batch.num_tokens)
    try:
        torch.set_num_threads(1)
        alone = adapter.logits(batch, keep)
        torch.set_num_threads(num_threads)
        assert all(torch.equal(adapter.logits(batch, keep), alone) for _ in range(20))
    finally:
        torch.set_num_threads(before)


def test_weights_are_not_kept_twice() -> None:
    adapter, truth = packed("llama")
    operate(adapter, truth)
    names = [name for name, _ in adapter.model.named_parameters()]
    assert [name for name in names if "proj" in name] == []


def lying_linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    made = make_linear(weight, bias)
    return lambda x: made(x) * 1.01


def lying_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    return PLAIN.rms_norm(x, weight, 100 * eps, offset) * 1.01


def failing_act(gate_up: Tensor, act: str) -> Tensor:
    raise RuntimeError(f"no {act} for {gate_up.dtype} here")


@pytest.mark.parametrize(
    ("materials", "reason"),
    [
        (Materials(lying_linear, PLAIN), "differs by"),
        (Materials(PlainLinear, PLAIN._replace(rms_norm=lying_norm)), "differs by"),
        (Materials(PlainLinear, PLAIN._replace(act_mul=failing_act)), "no silu for"),
    ],
    ids=["linear", "norm", "activation"],
)
def test_a_part_that_computes_something_else_leaves_the_layer_as_it_was(materials: Materials, reason: str) -> None:
    adapter, truth = packed("llama")
    report = operate(adapter, truth, materials)
    assert report.num_rebuilt == 0
    assert all(reason in complaint for complaint in report.reasons)
    if materials.linear is not lying_linear:
        assert report.pieces.linears > 0


def test_layers_are_replaced_where_the_outer_forward_has_to_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, truth = packed("qwen3")
    original = adapter.model.forward

    @wraps(original)
    def forward(*args: object, **kwargs: object) -> object:
        output = original(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    monkeypatch.setattr(adapter.model, "forward", forward)
    halved = truth._replace(logits=[logits * 0.5 for logits in truth.logits])
    report = operate(adapter, halved)
    assert report.num_rebuilt == report.num_layers
    assert not report.has_program
    assert any("changed behind the head" in reason for reason in report.reasons)
    halved.check(adapter)


def test_a_model_that_tier_1_breaks_runs_as_it_is(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_it(adapter: Adapter, batch: object) -> surgery.Report:
        adapter.program = lambda token_ids, positions, keep: torch.zeros(len(keep), adapter.vocab_size)
        return surgery.Report(1, 1, True, False, Replaced(), ())

    monkeypatch.setattr(surgery, "operate", break_it)
    with caplog.at_level(logging.WARNING):
        loading.load(EngineConfig(model=str(tiny_checkpoint("llama")), dtype="float32", kv_cache_tokens=512))
    assert "runs as it is" in caplog.text


def test_tier_0_touches_nothing(tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(surgery, "operate")
    loading.load(EngineConfig(model=str(tiny_checkpoint("llama")), dtype="float32", kv_cache_tokens=512, tier=0))


@pytest.fixture
def library() -> Ops:
    """The plain ones once more where no compiler is: those are used then."""
    return LIBRARY if backend_named("auto").name == "cpu" else PLAIN


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_librarys_operations_are_the_plain_ones(library: Ops, dtype: torch.dtype, offset: float) -> None:
    noise = torch.Generator().manual_seed(0)
    x, residual, gate_up = (torch.randn(5, width, generator=noise).to(dtype) for width in (70, 70, 140))
    weight = torch.randn(70, generator=noise).to(dtype)

    def close(ours: Tensor, plain: Tensor) -> None:
        near = 1e-5 if dtype == torch.float32 else 0.01
        torch.testing.assert_close(ours, plain, rtol=near, atol=near)

    close(library.rms_norm(x, weight, 1e-6, offset), PLAIN.rms_norm(x, weight, 1e-6, offset))
    ours, plain = residual.clone(), residual.clone()
    close(library.add_rms_norm(ours, x, weight, 1e-6, offset), PLAIN.add_rms_norm(plain, x, weight, 1e-6, offset))
    assert torch.equal(ours, plain)
    for act in ("silu", "gelu_tanh"):
        close(library.act_mul(gate_up, act), PLAIN.act_mul(gate_up, act))


def test_a_norm_is_known_by_what_it_computes() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return PLAIN.rms_norm(x, self.weight, self.eps, 0.0) + 0.01

    assert rms_norm_of(Shifted(), PLAIN) is None
    assert rms_norm_of(nn.LayerNorm(8), PLAIN) is None
    known = rms_norm_of(nn.RMSNorm(8, eps=1e-5), PLAIN)
    assert known is not None
    assert known.eps == 1e-5
    assert np.isclose(known.offset, 0.0)
