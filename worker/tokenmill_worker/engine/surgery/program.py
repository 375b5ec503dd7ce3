"""The whole decoder as a loop over rebuilt layers, without transformers' outer forward. Knows no model class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenmill_worker.engine.answers import UNKNOWN, Answers
from tokenmill_worker.engine.batch import Bools
from tokenmill_worker.engine.surgery.fused import Stack, stack_of
from tokenmill_worker.engine.surgery.layer import Layer, Rope
from tokenmill_worker.engine.surgery.linear import Linear
from tokenmill_worker.engine.surgery.norm import Norm
from tokenmill_worker.engine.surgery.ropes import Ropes, Rotary
from tokenmill_worker.engine.surgery.screening import Screening


@dataclass(frozen=True)
class Program:
    embedding: nn.Module
    embedding_scale: float
    ropes: Sequence[Ropes]
    layers: Sequence[tuple[Layer, int]]  # with the index of its ropes
    norm: Norm
    head: Linear
    finish: Callable[[Tensor], Tensor]  # what the model does to its logits in the end
    screening: Screening | None = None

    def __call__(self, token_ids: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
        """Logits [len(keep), V] of the tokens `keep` of the run."""
        return self.finish(self.head(self.norm_of_last(token_ids, positions, keep)))

    def answers(self, token_ids: Tensor, positions: Tensor, keep: Tensor, is_greedy: Bools) -> Answers:
        """Of the tokens `keep`, of which some [len(keep)] need no more than the likeliest token."""
        hidden = self.norm_of_last(token_ids, positions, keep)
        if self.screening is None:
            return Answers.of_logits(self.finish(self.head(hidden)))
        chosen = self.screening(hidden, is_greedy)
        rows = np.flatnonzero(chosen == UNKNOWN)
        if len(rows) == 0:
            return Answers(chosen, rows, None)
        own = hidden if len(rows) == len(chosen) else hidden.index_select(0, torch.from_numpy(rows))
        return Answers(chosen, rows, self.finish(self.head(own)))

    def norm_of_last(self, token_ids: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
        """What the head is given. The last layer's products are done for the kept tokens alone."""
        residual = self.embed(token_ids)
        ropes = [ropes_at(residual, positions) for ropes_at in self.ropes]
        x = self.layers[0][0].attention_in(residual)
        if len(keep) == len(token_ids):
            return self._through(residual, x, ropes, len(self.layers)).index_select(0, keep)
        x = self._through(residual, x, ropes, len(self.layers) - 1)
        last, rotary = self.layers[-1]
        return last.run(residual, x, ropes[rotary], self.norm, keep)

    def _through(self, residual: Tensor, x: Tensor, ropes: Sequence[Rope], count: int) -> Tensor:
        """The first `count` layers."""
        fused = None if self._stack is None else self._stack.run(residual, x, ropes, count)
        if fused is not None:
            return fused
        for (layer, rotary), following in zip(self.layers[:count], self._following, strict=False):
            x = layer.run(residual, x, ropes[rotary], following)
        return x

    @cached_property
    def _stack(self) -> Stack | None:
        return stack_of(self.layers, self._following)

    @cached_property
    def _following(self) -> list[Norm]:
        return [*(layer.attention_in for layer, _ in self.layers[1:]), self.norm]

    def embed(self, token_ids: Tensor) -> Tensor:
        residual: Tensor = self.embedding(token_ids)
        return residual if self.embedding_scale == 1.0 else residual * self.embedding_scale


def rotaries_of(decoder: nn.Module, layer_types: Sequence[str]) -> list[Rotary]:
    """The decoder's own: for all layers alike, or one for each type of layer."""
    own: Any = getattr(decoder, "rotary_emb", None)
    if own is None:
        return []
    kinds = sorted(set(layer_types))
    return [own, *(_for_kind(own, kind) for kind in kinds)]


def _for_kind(rotary: Any, kind: str) -> Rotary:
    def of_kind(x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = rotary(x, positions, kind)
        return result

    return of_kind
