"""A decoder layer in about eight calls: the parts of a transformers layer, put together anew. Knows no model class."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

from torch import Tensor, nn

from tokenmill_worker.engine.attention import AttentionSpec, KVPages, rope_attention
from tokenmill_worker.engine.surgery.fused import Fusion
from tokenmill_worker.engine.surgery.linear import Linear
from tokenmill_worker.engine.surgery.norm import Norm, RmsNorm
from tokenmill_worker.engine.surgery.ops import Ops

Mlp = Callable[[Tensor], Tensor]  # [T, C] -> [T, C]


class Rope(NamedTuple):
    """One step's rotations, [T, R] each."""

    cos: Tensor
    sin: Tensor


class HeadNorms(NamedTuple):
    """Norms of queries and keys before they are rotated, over each head or over all heads together."""

    query: RmsNorm
    key: RmsNorm


@dataclass(frozen=True, slots=True)
class Attention:
    holder: nn.Module  # carries `_kv`, the layer's pages
    project: Linear  # q, k and v in one product
    output: Linear
    spec: AttentionSpec
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norms: HeadNorms | None

    def __call__(self, x: Tensor, rope: Rope) -> Tensor:
        """[T, C] -> [T, H D], before the output product."""
        qkv = self.project(x)
        if self.norms is not None:
            self._normalize(qkv, self.norms)
        pages = cast("KVPages", self.holder._kv)
        return rope_attention(qkv, rope.cos, rope.sin, pages, self.spec, num_heads=self.num_heads)

    def _normalize(self, qkv: Tensor, norms: HeadNorms) -> None:
        num_query, num_key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        for part, norm in (
            (qkv[:, :num_query], norms.query),
            (qkv[:, num_query : num_query + num_key], norms.key),
        ):
            width = len(norm.weight)
            part.copy_(norm(part.reshape(-1, width).contiguous()).view(part.shape))


@dataclass(frozen=True, slots=True)
class GatedMlp:
    gate_up: Linear
    act: str
    down: Linear
    ops: Ops

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.ops.act_mul(self.gate_up(x), self.act))


@dataclass(frozen=True, slots=True)
class ModuleMlp:
    """Another kind of MLP, experts among them, as transformers made it; some give their router's scores as well."""

    module: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        result = self.module(x[None])
        hidden: Tensor = result[0] if isinstance(result, tuple) else result
        return hidden.view(x.shape)


@dataclass(frozen=True, slots=True)
class Layer:
    """residual += attention_out(attention(attention_in(residual))), then the same with the MLP.

    The norm of what comes in belongs to whoever added last, so that adding and norm are one call.
    """

    attention_in: Norm
    attention: Attention
    attention_out: Norm | None
    mlp_in: Norm
    mlp: Mlp
    mlp_out: Norm | None
    multiplier: float  # of what is added to the residual
    fusion: Fusion | None = None  # the same for the library

    def run(self, residual: Tensor, x: Tensor, rope: Rope, following: Norm, keep: Tensor | None = None) -> Tensor:
        """residual [T, C], changed in place, and x = attention_in(residual) -> following(residual).

        `keep`: only these tokens' results are wanted, [len(keep), C]; the residual then stays unfinished.
        """
        attended = self.attention(x, rope)
        if keep is not None:
            attended, residual = attended.index_select(0, keep), residual.index_select(0, keep)
        x = self._add(residual, self.attention.output(attended), self.attention_out, self.mlp_in)
        return self._add(residual, self.mlp(x), self.mlp_out, following)

    def _add(self, residual: Tensor, x: Tensor, out: Norm | None, following: Norm) -> Tensor:
        if out is not None:
            x = out(x)
        if self.multiplier != 1.0:
            x = x * self.multiplier
        return following.after_adding(residual, x)
