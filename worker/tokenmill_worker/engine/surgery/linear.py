"""Linear layers in the layout that the CPU multiplies fastest, several of one input joined. Knows no model."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenmill_worker.engine.attention.cpu.linears import Bfloat16Linear

Linear = Callable[[Tensor], Tensor]  # [M, K] -> [M, N]
LinearFactory = Callable[[Tensor, Tensor | None], Linear]  # (weight [N, K], bias [N]) -> Linear


class PlainLinear:
    """Where nothing faster is known."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class PackedLinear:
    """oneDNN's product with weights that were put into its own layout once, instead of at each call."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = bias
        self._product = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = self._product(x, self._weight, self._bias, "none", [], "")
        return result


def make_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """The fastest that works for this device and dtype."""
    weight = weight.contiguous()
    if _can_pack(weight.device, weight.dtype):
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


def make_library_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """The same where the C++ library is loaded: in bfloat16 its own product is the faster one."""
    if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and torch.ops.tokenmill_cpu.has_fast_bfloat16():
        return Bfloat16Linear(weight, bias)
    return make_linear(weight, bias)


def joined(modules: Sequence[nn.Linear], factory: LinearFactory) -> Linear:
    """One product for several layers that read the same input: results side by side."""
    if len(modules) == 1:
        return factory(modules[0].weight.data, _bias(modules[0]))
    weight = torch.cat([module.weight.data for module in modules])
    biases = [_bias(module) for module in modules]
    if all(bias is None for bias in biases):
        return factory(weight, None)
    filled = [
        weight.new_zeros(module.out_features) if bias is None else bias
        for module, bias in zip(modules, biases, strict=True)
    ]
    return factory(weight, torch.cat(filled))


def is_plain_linear(module: object) -> bool:
    """Not a subclass: a quantized or adapted layer multiplies in its own way."""
    return type(module) is nn.Linear


def _bias(module: nn.Linear) -> Tensor | None:
    return None if module.bias is None else module.bias.data


def _can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
