"""Norms: root mean square in one call, alone or together with the addition before it. Knows no layer."""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from tokenmill_worker.engine.surgery.ops import PLAIN, Ops

SMALL = 3e-3  # inputs of this size: their squares are as small as the usual epsilons, so a wrong one shows
TOLERANCE = 1e-5


class Norm(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """[T, C] -> [T, C]."""
        ...

    def after_adding(self, residual: Tensor, x: Tensor) -> Tensor:
        """Adds x to the residual, in place, and gives the norm of the sum."""
        ...


class RmsNorm:
    def __init__(self, weight: Tensor, eps: float, offset: float, ops: Ops) -> None:
        self.weight, self.eps, self.offset = weight, eps, offset
        self._rms_norm, self._add_rms_norm = ops.rms_norm, ops.add_rms_norm

    def __call__(self, x: Tensor) -> Tensor:
        return self._rms_norm(x, self.weight, self.eps, self.offset)

    def after_adding(self, residual: Tensor, x: Tensor) -> Tensor:
        return self._add_rms_norm(residual, x, self.weight, self.eps, self.offset)


class ModuleNorm:
    """Another kind of norm, as transformers made it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = self._module(x)
        return result

    def after_adding(self, residual: Tensor, x: Tensor) -> Tensor:
        return self(residual.add_(x))


class NoNorm:
    """What follows reads the residual itself."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def after_adding(self, residual: Tensor, x: Tensor) -> Tensor:
        return residual.add_(x)


def norm_of(module: nn.Module | None, ops: Ops) -> Norm:
    """The fused form where the module turns out to be a root mean square norm, and otherwise the module."""
    if module is None:
        return NoNorm()
    return rms_norm_of(module, ops) or ModuleNorm(module)


def rms_norm_of(module: nn.Module, ops: Ops) -> RmsNorm | None:
    """Judged by what it computes, not by its name: weight * x / rms(x), or (1 + weight) * x / rms(x)."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    if getattr(module, "bias", None) is not None:
        return None
    for offset in (0.0, 1.0):
        if _computes_rms_norm(module, weight, eps, offset):
            return RmsNorm(weight.data, eps, offset, ops)
    return None


@torch.inference_mode()
def _computes_rms_norm(module: nn.Module, weight: Tensor, eps: float, offset: float) -> bool:
    wide = copy.deepcopy(module).float()
    x = torch.randn(2, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device)
    x = torch.cat([x, SMALL * x])
    expected = PLAIN.rms_norm(x, weight.data.float(), eps, offset)
    return torch.allclose(wide(x), expected, rtol=TOLERANCE, atol=TOLERANCE)
