"""Decoder layers as one call of the C++ library (csrc/layer.cpp): the same operations, without Python between them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from tokenmill_worker.engine.attention.cpu.backend import CpuBackend, indices, knows_rope
from tokenmill_worker.engine.attention.op import active
from tokenmill_worker.engine.surgery.norm import Norm, RmsNorm
from tokenmill_worker.engine.surgery.ops import LIBRARY

if TYPE_CHECKING:
    from tokenmill_worker.engine.attention import KVPages
    from tokenmill_worker.engine.surgery.layer import Attention, GatedMlp, Layer, Rope


class Fusion:
    """Of a layer like Llama's: root mean square norms before, none after, a gated MLP, all products the library's."""

    def __init__(self, attention: "Attention", mlp_in: RmsNorm, mlp: "GatedMlp") -> None:
        self._attention, self._mlp_in, self._mlp = attention, mlp_in, mlp
        self._linears = (attention.project, attention.output, mlp.gate_up, mlp.down)

    @property
    def pages(self) -> "KVPages":
        return cast("KVPages", self._attention.holder._kv)

    def make(self) -> Any:
        """The library's form of it; None while its products are not the library's: int8 comes late (quantizer.py)."""
        handles = [getattr(linear, "handle", None) for linear in self._linears]
        if any(handle is None for handle in handles):  # "in" would compare them
            return None
        norm = (self._mlp_in.weight, self._mlp_in.eps, self._mlp_in.offset)
        heads = [self._attention.num_heads, self._attention.num_kv_heads]
        return torch.classes.tokenmill_cpu.Layer(*handles, self._mlp.act, *norm, heads, *self._attention.spec)


def fusion_of(attention: "Attention", mlp_in: Norm, mlp: object) -> Fusion | None:
    """`mlp_in` and `mlp` of a layer that has no norms behind attention and MLP, and adds what they give as it is."""
    ops, linears = getattr(mlp, "ops", None), [getattr(mlp, name, None) for name in ("gate_up", "down")]
    linears += [attention.project, attention.output]
    if ops is not LIBRARY or attention.norms is not None or not isinstance(mlp_in, RmsNorm):
        return None
    if not all(hasattr(linear, "handle") for linear in linears):
        return None
    return Fusion(attention, mlp_in, cast("GatedMlp", mlp))


class Stack:
    """Layers that follow one another, all of which have a fusion. `rotaries`: which of a step's ropes each one takes.

    `norms`: those that follow them, each the next one's first.
    """

    def __init__(self, fusions: Sequence[Fusion], rotaries: Sequence[int], norms: Sequence[RmsNorm]) -> None:
        self._fusions, self._rotaries, self._norms = fusions, rotaries, norms
        self._made: Any = None

    def run(self, residual: Tensor, x: Tensor, ropes: Sequence["Rope"], count: int) -> Tensor | None:
        """The first `count` layers: as Layer.run one after the other. None where they have to run that way."""
        if self._made is None:
            self._made = self._make()
        step, backend = active()
        pages = [fusion.pages for fusion in self._fusions]
        if self._made is None or not isinstance(backend, CpuBackend) or not all(map(knows_rope, pages)):
            return None
        cos, sin = zip(*ropes, strict=True)
        keys, values = zip(*pages, strict=True)
        result: Tensor = self._made.run(residual, x, cos, sin, keys, values, indices(step), count)
        return result

    def _make(self) -> Any:
        layers = [fusion.make() for fusion in self._fusions]
        if any(layer is None for layer in layers):
            return None
        stack = torch.classes.tokenmill_cpu.Stack()
        for layer, rotary, norm in zip(layers, self._rotaries, self._norms, strict=True):
            stack.add(layer, rotary, norm.weight, norm.eps, norm.offset)
        return stack


def stack_of(layers: Sequence[tuple["Layer", int]], following: Sequence[Norm]) -> Stack | None:
    """`layers` with the index of their rotary, and the norms behind them. None where one of them is of another form."""
    fusions = [layer.fusion for layer, _ in layers if layer.fusion is not None]
    norms = [norm for norm in following if isinstance(norm, RmsNorm)]
    if len(fusions) < len(layers) or len(norms) < len(layers):
        return None
    return Stack(fusions, [rotary for _, rotary in layers], norms)
