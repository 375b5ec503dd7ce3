"""Rotate, store, attend: a layer's attention from its joint q/k/v product on. Knows no model."""

from typing import Protocol

import torch
from torch import Tensor

from tokenmill_worker.engine.attention.backend import AttentionSpec, KVPages
from tokenmill_worker.engine.attention.op import active, attention
from tokenmill_worker.engine.attention.step import AttentionStep


class RopeAttend(Protocol):
    """The method `rope_attend` of a backend that does all of it in one call."""

    def __call__(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        pages: KVPages,
        step: AttentionStep,
        spec: AttentionSpec,
        num_heads: int,
    ) -> Tensor | None:
        """As `rope_attention` below. None: it has no kernel for this."""
        ...


def rope_attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, pages: KVPages, spec: AttentionSpec, *, num_heads: int
) -> Tensor:
    """qkv [T, (H + 2 kv_heads) D], cos and sin [T, R <= D] with equal halves -> [T, H D]; writes the step's slots.

    The first R of a head's D values are rotated, value i together with value i + R / 2.
    """
    step, backend = active()
    rope_attend: RopeAttend | None = getattr(backend, "rope_attend", None)
    if rope_attend is not None:
        attended = rope_attend(qkv, cos, sin, pages, step, spec, num_heads)
        if attended is not None:
            return attended
    num_kv_heads, head_dim = pages.keys.shape[1], pages.keys.shape[3]
    heads = qkv.view(len(qkv), -1, head_dim)
    query, key = (
        _rotate(part, cos[:, None], sin[:, None])
        for part in (heads[:, :num_heads], heads[:, num_heads : num_heads + num_kv_heads])
    )
    return attention(query, key, heads[:, num_heads + num_kv_heads :], pages, spec).flatten(1)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[T, heads, D], rounded where transformers' modules round."""
    num_rotated = cos.shape[-1]
    turned, kept = heads[..., :num_rotated], heads[..., num_rotated:]
    low, high = turned.chunk(2, -1)
    turned = turned * cos + torch.cat([-high, low], -1) * sin
    return torch.cat([turned, kept], -1) if num_rotated < heads.shape[-1] else turned
