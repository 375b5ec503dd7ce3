"""The arg-max of a vocabulary head by the C++ library (csrc/screened_head.cpp). It must be loaded. Knows no model."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenmill_worker.engine.attention.cpu.linears import COLUMNS, MAX_INPUTS, pack_levels, quantize
from tokenmill_worker.engine.attention.cpu.memory import weights

MARGIN = 1.002  # of lengths that were summed in float32
SHORTEST = 2.0**-40  # covers what a processor makes of numbers below the normal ones
LONGEST = 2.0**50
AT_ONCE = 128 * COLUMNS  # columns that are float32 for a moment


class ScreenedHead:
    """Which column of x W^T is the largest, of equal ones the first: as Bfloat16Linear and an arg-max say, to the last
    bit. Beside the weight it keeps an int8 copy, a byte for each of its elements."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight  # [V, K]
        parts = [_screen(part) for part in torch.split(weight, AT_ONCE)]
        packed, scales, sums, errors, norms = map(torch.cat, zip(*parts, strict=True))
        filling = -len(weight) % COLUMNS
        self._screen = weights.keep(packed), scales, sums, F.pad(errors, (0, filling)), F.pad(norms, (0, filling))

    def __call__(self, x: Tensor, *, portable: bool = False) -> Tensor:
        """[M, K] -> [M]. -1: the bounds decide too little, as for a row with a NaN; ask the head itself."""
        token_ids: Tensor = torch.ops.tokenmill_cpu.screened_argmax(x, self._weight, *self._screen, portable)
        return token_ids


def can_screen(weight: Tensor) -> bool:
    """It has to be what Bfloat16Linear multiplies with, and the processor's int8 faster than that."""
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or not torch.ops.tokenmill_cpu.has_fast_int8():
        return False
    if not weight.is_contiguous() or weight.shape[1] % 2 or weight.shape[1] > MAX_INPUTS:
        return False
    return bool(weight.abs().amax() * weight.shape[1] <= LONGEST)  # also refuses NaN


def _screen(weight: Tensor) -> tuple[Tensor, ...]:
    """Of some columns: packed levels, their scales and sums, |w - w'| and |w|."""
    wide, levels = weight.float(), quantize(weight)
    errors, norms = (wide - levels.dequantized()).norm(dim=1), wide.norm(dim=1)
    lengths = ((MARGIN * part).clamp_min(SHORTEST) for part in (errors, norms))
    return pack_levels(levels), levels.scales, levels.values.sum(1).float(), *lengths
