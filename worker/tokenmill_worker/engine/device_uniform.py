"""`uniform` on a device, bit for bit: for draws inside a CUDA graph. Knows no sampler."""

import torch
from torch import Tensor

from tokenmill_worker.engine.uniform import GAMMA, MUL_1, MUL_2, ULP


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """Both [S] int64, seeds as the bits of an unsigned word -> [S] float64 in [0, 1). Multiplication wraps around."""
    words = _mix64(_mix64(seeds) + (positions + 1) * _signed(GAMMA))
    return _shifted(words, 11).double() * ULP


def _mix64(words: Tensor) -> Tensor:
    words = (words ^ _shifted(words, 30)) * _signed(MUL_1)
    words = (words ^ _shifted(words, 27)) * _signed(MUL_2)
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, by: int) -> Tensor:
    """To the right, with zeros coming in: torch's own shift repeats the sign."""
    return torch.bitwise_right_shift(words, by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word
