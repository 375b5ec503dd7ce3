"""Rebuilt layers against the layers they stand for. Knows no structure.

What a layer computes is compared once for each kind of layer in float32, where a difference has no other explanation
than a wrong reading of the structure; each single layer is then compared in its own dtype, where packed weights and
fused operations may round differently but not compute something else.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tokenmill_worker.engine.attention import AttentionStep, Backend, KVPages, activate
from tokenmill_worker.engine.surgery.layer import Layer, Rope
from tokenmill_worker.engine.surgery.norm import NoNorm
from tokenmill_worker.engine.surgery.recording import LayerCall, rope_of

EXACT = 2e-4  # root mean square, in units of what the layer changes. Measured: 1e-6; a gelu of the other kind is 1e-3
COARSE = 0.05  # the same in half precision. Measured: 0.005; what is wrong is from 0.1 up


class DifferentResultError(Exception):
    """A rebuilt part computes something else than the original."""


def check_layer(layer: Layer, call: LayerCall, step: AttentionStep, backend: Backend) -> None:
    """Raises DifferentResultError. Both saw the same input and the same pages."""
    _known(call.embeddings)
    with activate(step, backend):
        ours = run_alone(layer, call.input, call.rope)
    check(ours - call.input, call.output - call.input, EXACT if ours.dtype == torch.float32 else COARSE)


def check_structure(
    build: Callable[[nn.Module], Layer], call: LayerCall, step: AttentionStep, backend: Backend
) -> None:
    """The same in float32, on copies of the layer and of its pages. Raises DifferentResultError."""
    original = _wide_copy(call.module)
    cos, sin = _known(call.embeddings)
    hidden, embeddings = call.input.float(), (cos.float(), sin.float())
    with activate(step, backend):
        result = original(hidden[None], position_embeddings=embeddings)
        ours = run_alone(build(original), hidden, rope_of(embeddings, hidden.dtype, are_half=call.has_half_embeddings))
    truth: Tensor = (result[0] if isinstance(result, tuple) else result).view(hidden.shape)
    check(ours - hidden, truth - hidden, EXACT)


def check(ours: Tensor, truth: Tensor, allowed: float) -> None:
    """Raises DifferentResultError when the root mean square of the difference is more than this share of the truth."""
    wide = truth.float()
    difference = float((ours.float() - wide).square().mean().sqrt() / wide.square().mean().sqrt().clamp_min(1e-12))
    if not difference <= allowed:  # also refuses NaN
        raise DifferentResultError(f"its result differs by {difference:.1e}, allowed {allowed:.0e}")


def run_alone(layer: Layer, hidden: Tensor, rope: Rope) -> Tensor:
    """The layer as transformers calls it: [T, C] -> [T, C]; the input stays as it is."""
    residual = hidden.clone()
    return layer.run(residual, layer.attention_in(residual), rope, NoNorm())


def _known(embeddings: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    if embeddings is None:
        raise DifferentResultError("it is given no position_embeddings")
    return embeddings


def _wide_copy(module: nn.Module) -> nn.Module:
    wide = copy.deepcopy(module).float()
    for part in wide.modules():
        if isinstance(pages := getattr(part, "_kv", None), KVPages):
            part._kv = KVPages(*(side.float() for side in pages))  # type: ignore[assignment]  # plain data
    return wide
