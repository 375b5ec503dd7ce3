"""The head's arg-max without all of its logits, for rows that want nothing else. Knows no sampler.

What is chosen is what the whole head gives, to the last bit (attention/cpu/csrc/screened_head.cpp has the reason), so a
step may take either way, and this file decides which one is the faster.
"""

import logging

import numpy as np
import torch
from torch import Tensor, nn

from tokenmill_worker.engine.answers import UNKNOWN
from tokenmill_worker.engine.attention.cpu.linears import Bfloat16Linear
from tokenmill_worker.engine.attention.cpu.screened_head import ScreenedHead, can_screen
from tokenmill_worker.engine.batch import Bools, Ids
from tokenmill_worker.engine.surgery.linear import Linear

_logger = logging.getLogger(__name__)

MANY = 16  # rows beside others that need logits: below it they cost less in the product that is done anyway
PERIOD = 64  # calls after which it is judged
MOST_IN_VAIN = 16  # of them, with rows that need the whole head as well: then nothing is gained


class Screening:
    """Of a head whose logits nothing changes. Gives up where a model's logits lie too close together for it."""

    def __init__(self, head: ScreenedHead) -> None:
        self._head: ScreenedHead | None = head
        self._num_calls = self._num_in_vain = 0

    def __call__(self, hidden: Tensor, is_asked: Bools) -> Ids:
        """hidden [S, C] -> the likeliest tokens [S] of the rows that are asked for; UNKNOWN where it does not say."""
        token_ids = np.full(len(hidden), UNKNOWN, dtype=np.int64)
        asked = np.flatnonzero(is_asked)
        if self._head is None or len(asked) == 0 or (len(asked) < MANY and len(asked) < len(hidden)):
            return token_ids
        own = hidden if len(asked) == len(hidden) else hidden.index_select(0, torch.from_numpy(asked))
        token_ids[asked] = self._head(own).numpy()
        self._judge(is_in_vain=bool((token_ids[asked] == UNKNOWN).any()))
        return token_ids

    def _judge(self, *, is_in_vain: bool) -> None:
        self._num_calls += 1
        self._num_in_vain += is_in_vain
        if self._num_calls < PERIOD:
            return
        if self._num_in_vain > MOST_IN_VAIN:
            self._head = None
            _logger.info("The head is no longer screened: this model's logits lie too close together")
        self._num_calls = self._num_in_vain = 0


@torch.inference_mode()
def screening_of(module: nn.Linear, made: Linear, hidden: Tensor) -> Screening | None:
    """`made`: the product that took the place of the head `module`. `hidden` [T, C]: what it was given in the trial."""
    if not isinstance(made, Bfloat16Linear) or getattr(module, "bias", None) is not None:
        return None
    if not can_screen(module.weight.data):
        return None
    head = ScreenedHead(module.weight.data)
    screened = head(hidden.contiguous())
    truth = torch.ops.tokenmill_cpu.argmax(made(hidden))
    if bool(((screened != truth) & (screened != UNKNOWN)).any()):
        _logger.warning("The screened head chooses other tokens than the whole one on this machine: it is left out")
        return None
    return Screening(head)
