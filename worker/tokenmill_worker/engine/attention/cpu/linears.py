"""Linear layers by the C++ library, their weights packed for it (csrc/linear.h). It must be loaded. Knows no model."""

from typing import NamedTuple, Protocol

import torch
from torch import ScriptObject, Tensor
from torch.nn import functional as F

from tokenmill_worker.engine.attention.cpu.memory import weights

COLUMNS = 32  # of the product in one panel, as in csrc/linear.h
MAX_LEVEL = 127
MAX_INPUTS = 1 << 16  # sums of uint8 times int8 must fit in int32


class Levels(NamedTuple):
    """weight[n, k] is about scales[n] * values[n, k]."""

    values: Tensor  # int8 [N, K], -127 ... 127
    scales: Tensor  # float32 [N]

    def dequantized(self) -> Tensor:
        return self.values.float() * self.scales[:, None]


def quantize(weight: Tensor) -> Levels:
    """[N, K] -> one scale an output, so that its largest weight is 127 steps."""
    wide = weight.float()
    scales = wide.abs().amax(1) / MAX_LEVEL
    values = torch.round(wide / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None])
    return Levels(values.clamp(-MAX_LEVEL, MAX_LEVEL).to(torch.int8), scales)


class PackedLinear(Protocol):
    """What this file makes. `handle` is the same product for those who call the library for more than one."""

    handle: ScriptObject

    def __call__(self, x: Tensor) -> Tensor:
        """[M, K] -> [M, N]."""
        ...


def _handle(
    name: str,
    packed: Tensor,
    num_columns: int,
    bias: Tensor | None,
    *,
    scales: Tensor | None = None,
    sums: Tensor | None = None,
    factors: Tensor | None = None,
) -> ScriptObject:
    made: ScriptObject = torch.classes.tokenmill_cpu.Linear(packed, num_columns, scales, sums, bias, factors, name)
    return made


class W8A8Linear:
    """int8 weights; each row of x is made uint8 with a scale and a zero point of its own.

    `factors` [K]: x is multiplied by them before, the weights are divided: the same product, other roundings.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, factors: Tensor | None = None) -> None:
        levels = quantize(weight if factors is None else weight.float() / factors)
        self._factors = factors
        self._packed = _panels(levels.values, per_unit=4)
        self._scales, self._bias = levels.scales, _float(bias)
        self._sums = levels.values.sum(1).float()
        self._product = torch.ops.tokenmill_cpu.linear_w8a8.default
        self.handle = _handle(
            "w8a8",
            self._packed,
            len(weight),
            self._bias,
            scales=self._scales,
            sums=self._sums,
            factors=factors,
        )

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = self._product(x, self._packed, self._scales, self._sums, self._bias, self._factors)
        return result


class W8A16Linear:
    """int8 weights; x is taken as bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        levels = quantize(weight)
        self._packed = _signs_and_magnitudes(levels.values)
        self._scales, self._bias = levels.scales, _float(bias)
        self._product = torch.ops.tokenmill_cpu.linear_w8a16.default
        self.handle = _handle("w8a16", self._packed, len(weight), self._bias, scales=self._scales)

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = self._product(x, self._packed, self._scales, self._bias)
        return result


class Bfloat16Linear:
    """bfloat16 weights and x, float32 sums."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed = _panels(weight.to(torch.bfloat16), per_unit=2)
        self._num_columns, self._bias = len(weight), _float(bias)
        self._product = torch.ops.tokenmill_cpu.linear_bf16.default
        self.handle = _handle("bf16", self._packed, self._num_columns, self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = self._product(x, self._packed, self._num_columns, self._bias)
        return result


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float().contiguous()


def pack_levels(levels: Levels) -> Tensor:
    """As linear_w8a8 takes them."""
    return _as_bytes(_units(levels.values, per_unit=4).contiguous())


def _panels(weight: Tensor, *, per_unit: int) -> Tensor:
    """[N, K] -> [panels, units, bytes]: in each unit 32 columns, of each its `per_unit` inputs."""
    return _as_bytes(weights.keep(_units(weight, per_unit)))


def _units(weight: Tensor, per_unit: int) -> Tensor:
    """[panels, units, columns, per_unit]."""
    return _in_panels(weight, per_unit).transpose(1, 2)


def _as_bytes(packed: Tensor) -> Tensor:
    return packed.view(torch.uint8).view(*packed.shape[:2], -1)


def _signs_and_magnitudes(levels: Tensor) -> Tensor:
    """In each unit of 2 inputs the bytes lie so that the kernel's unpacking, 16 bytes by 16, puts columns in order."""
    units = _in_panels(levels, 2).to(torch.int16)
    signed = (units.abs() + 128 * (units < 0)).to(torch.uint8)
    panels, _, num_units, _ = signed.shape
    ordered = signed.view(panels, 2, 4, 4, num_units, 2).permute(0, 4, 2, 1, 3, 5)  # halves inside lanes
    return weights.keep(ordered.reshape(panels, num_units, 2 * COLUMNS))


def _in_panels(weight: Tensor, per_unit: int) -> Tensor:
    num_columns, num_inputs = weight.shape
    if num_inputs > MAX_INPUTS:
        raise ValueError(f"a packed linear takes up to {MAX_INPUTS} inputs, not {num_inputs}")
    filled = F.pad(weight, (0, -num_inputs % per_unit, 0, -num_columns % COLUMNS))
    return filled.view(filled.shape[0] // COLUMNS, COLUMNS, -1, per_unit)
