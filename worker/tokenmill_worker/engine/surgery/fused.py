"""A decoder layer as one call of the C++ library (csrc/layer.cpp): the same operations, without Python between them."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from tokenmill_worker.engine.attention.cpu.backend import CpuBackend, indices, knows_rope
from tokenmill_worker.engine.attention.op import active
from tokenmill_worker.engine.surgery.norm import Norm, RmsNorm
from tokenmill_worker.engine.surgery.ops import LIBRARY

if TYPE_CHECKING:
    from tokenmill_worker.engine.attention import KVPages
    from tokenmill_worker.engine.surgery.layer import Attention, GatedMlp, Rope


class Fusion:
    """Of a layer like Llama's: root mean square norms before, none after, a gated MLP, all products the library's."""

    def __init__(self, attention: "Attention", mlp_in: RmsNorm, mlp: "GatedMlp") -> None:
        self._attention, self._mlp_in, self._mlp = attention, mlp_in, mlp
        self._linears = (attention.project, attention.output, mlp.gate_up, mlp.down)
        self._layer: Any = None

    def run(self, residual: Tensor, x: Tensor, rope: "Rope", following: Norm) -> Tensor | None:
        """As Layer.run; None where it has to run part by part, as at first: int8 comes late (quantizer.py)."""
        if self._layer is None:
            self._layer = self._made()
        step, backend = active()
        pages = cast("KVPages", self._attention.holder._kv)
        if (
            self._layer is None
            or not isinstance(backend, CpuBackend)
            or not isinstance(following, RmsNorm)
            or not knows_rope(pages)
        ):
            return None
        after = (following.weight, following.eps, following.offset)
        result: Tensor = self._layer.run(residual, x, *rope, *pages, indices(step), *after)
        return result

    def _made(self) -> Any:
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
