"""Makes tier 1's linears, at first as they were, later in int8. Knows no layer and no model.

A quantized model differs from the original on purpose, so the original is what the load guard and tier 1 judge. Only
then does `commit` put int8 in, and each product is held to a plain one: what remains as a difference is rounding, and a
broken kernel is no rounding. (Tests hold the kernels to their own dequantized weights, far more closely.)
"""

from typing import Literal
from weakref import ReferenceType, ref

import torch
from torch import ScriptObject, Tensor
from torch.nn import functional as F

from tokenmill_worker.engine.api import ModelError
from tokenmill_worker.engine.attention.cpu.linears import W8A8Linear, W8A16Linear
from tokenmill_worker.engine.quantization.smoothing import balance

Kind = Literal["w8a8", "w8a16"]

TOLERANCE = 0.05  # root mean square of the rounding, in that of the product. What is broken is from 0.5 up


class QuantizedLinear:
    """[M, K] -> [M, N]. The plain product, watched, until `commit`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight: Tensor | None = weight
        self._bias = bias
        self._largest = torch.zeros(weight.shape[1])
        self._product: W8A8Linear | W8A16Linear | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._product is not None:
            return self._product(x)
        assert self._weight is not None
        self._largest = torch.maximum(self._largest, x.abs().amax(0).float())
        return F.linear(x, self._weight, self._bias)

    @property
    def handle(self) -> ScriptObject | None:
        """The library's form of it (attention/cpu/linears.py), once there is one."""
        return None if self._product is None else self._product.handle

    def commit(self, kind: Kind) -> None:
        """int8 from here on. Raises ModelError when the kernel is not right on this machine."""
        assert self._weight is not None
        weight = self._weight
        self._product = _make(kind, weight, self._bias, self._largest)
        self._weight = None
        _check(self._product, weight, self._bias)


class Quantizer:
    """`linear` is a LinearFactory for the operation; `commit` ends it."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._made: list[ReferenceType[QuantizedLinear]] = []  # what a layer did not take in the end is gone

    def linear(self, weight: Tensor, bias: Tensor | None) -> QuantizedLinear:
        made = QuantizedLinear(weight.contiguous(), bias)
        self._made.append(ref(made))
        return made

    @torch.inference_mode()
    def commit(self) -> int:
        """How many products are int8 now. Raises ModelError when there is nothing to quantize."""
        linears = [linear for reference in self._made if (linear := reference()) is not None]
        if not linears:
            raise ModelError(f"quantization {self._kind} finds no linear layer that it knows: leave it out")
        for linear in linears:
            linear.commit(self._kind)
        return len(linears)


def _make(kind: Kind, weight: Tensor, bias: Tensor | None, largest: Tensor) -> W8A8Linear | W8A16Linear:
    if kind == "w8a16":
        return W8A16Linear(weight, bias)
    return W8A8Linear(weight, bias, balance(weight, largest))


def _check(product: W8A8Linear | W8A16Linear, weight: Tensor, bias: Tensor | None) -> None:
    """A few random rows against float32."""
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    truth = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    error = (product(x).float() - truth).square().mean().sqrt() / truth.square().mean().sqrt().clamp_min(1e-12)
    if not float(error) <= TOLERANCE:  # also refuses NaN
        raise ModelError(f"int8 products are wrong on this machine, by {float(error):.1e}: leave quantization out")
