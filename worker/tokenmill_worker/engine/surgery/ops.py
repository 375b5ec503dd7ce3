"""The small operations of a decoder layer, each in one call. Plain torch here; the C++ library has the same ones."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Ops(NamedTuple):
    """T tokens of width C. Rounded to the tensors' dtype where transformers' modules round."""

    rms_norm: Callable[[Tensor, Tensor, float, float], Tensor]  # (x [T, C], weight [C], eps, offset) -> [T, C]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float, float], Tensor]  # residual += x, then the norm of that
    act_mul: Callable[[Tensor, str], Tensor]  # (gate and up side by side [T, 2 I], activation) -> [T, I]


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """x / rms(x) * (offset + weight). With an offset the product is rounded once, without one twice (Gemma, Llama)."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if offset:
        return (normed * (offset + weight.float())).to(x.dtype)
    return weight * normed.to(x.dtype)


def add_rms_norm(residual: Tensor, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    return rms_norm(residual.add_(x), weight, eps, offset)


def act_mul(gate_up: Tensor, act: str) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return ACTIVATIONS[act](gate) * up


PLAIN = Ops(rms_norm, add_rms_norm, act_mul)


def _by_library(name: str) -> Callable[..., Tensor]:
    """Looked up at the call: the library may be loaded later than this module."""

    def call(*args: object) -> Tensor:
        result: Tensor = getattr(torch.ops.tokenmill_cpu, name)(*args)
        return result

    return call


LIBRARY = Ops(_by_library("rms_norm"), _by_library("add_rms_norm"), _by_library("act_mul"))
