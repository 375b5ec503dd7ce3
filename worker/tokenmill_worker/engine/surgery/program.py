"""The whole decoder as a loop over rebuilt layers, without transformers' outer forward. Knows no model class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenmill_worker.engine.surgery.layer import Layer, Rope
from tokenmill_worker.engine.surgery.linear import Linear
from tokenmill_worker.engine.surgery.norm import Norm
from tokenmill_worker.engine.surgery.recording import rope_of

Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (any tensor of the dtype, positions [1, T]) -> cos, sin


@dataclass(frozen=True, slots=True)
class Program:
    embedding: nn.Module
    embedding_scale: float
    rotaries: Sequence[Rotary]
    are_half: bool  # what the rotaries give, see recording.py
    layers: Sequence[tuple[Layer, int]]  # with the index of its rotary
    norm: Norm
    head: Linear
    finish: Callable[[Tensor], Tensor]  # what the model does to its logits in the end

    def __call__(self, token_ids: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
        """Logits [len(keep), V] of the tokens `keep` of the run."""
        return self.finish(self.head(self.norm_of_last(token_ids, positions, keep)))

    def norm_of_last(self, token_ids: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
        """What the head is given. The last layer's products are done for the kept tokens alone."""
        residual = self.embed(token_ids)
        ropes = [self._rope(rotary(residual, positions[None]), residual.dtype) for rotary in self.rotaries]
        x = self.layers[0][0].attention_in(residual)
        for index, (layer, rotary) in enumerate(self.layers[:-1]):
            x = layer.run(residual, x, ropes[rotary], self.layers[index + 1][0].attention_in)
        last, rotary = self.layers[-1]
        kept = None if len(keep) == len(token_ids) else keep
        x = last.run(residual, x, ropes[rotary], self.norm, kept)
        return x if kept is not None else x.index_select(0, keep)

    def _rope(self, embeddings: tuple[Tensor, Tensor], dtype: torch.dtype) -> Rope:
        return rope_of(embeddings, dtype, are_half=self.are_half)

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
