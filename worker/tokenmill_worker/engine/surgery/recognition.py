"""Finds the parts of a transformers decoder layer by their structure. Whether it found right, verify.py decides."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokenmill_worker.engine.attention import AttentionSpec
from tokenmill_worker.engine.surgery.fused import fusion_of
from tokenmill_worker.engine.surgery.layer import Attention, GatedMlp, HeadNorms, Layer, Mlp, ModuleMlp
from tokenmill_worker.engine.surgery.linear import LinearFactory, is_plain_linear, joined
from tokenmill_worker.engine.surgery.norm import Norm, norm_of, rms_norm_of
from tokenmill_worker.engine.surgery.ops import ACTIVATIONS, Ops


class Materials(NamedTuple):
    """What the new layers are made with."""

    linear: LinearFactory
    ops: Ops


class Heads(NamedTuple):
    """What one attention layer was seen to do in a packed forward."""

    spec: AttentionSpec
    num_heads: int
    num_kv_heads: int
    head_dim: int


class UnknownStructureError(Exception):
    """The layer is built in a way that is not known here; str() says what is missing or odd."""


def rebuild(layer: nn.Module, heads: Heads, materials: Materials) -> Layer:
    """Raises UnknownStructureError. The weights are copied into new layouts; `released` frees the old ones."""
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if not isinstance(attention, nn.Module) or not isinstance(mlp, nn.Module):
        raise UnknownStructureError("no self_attn and mlp")
    norms = _norms(layer, materials.ops)
    multiplier = float(getattr(layer, "residual_multiplier", 1.0))
    rebuilt, rebuilt_mlp = _attention(attention, heads, materials), _mlp(mlp, materials)
    is_plain = norms.attention_out is None and norms.mlp_out is None and multiplier == 1.0
    return Layer(
        attention_in=norms.attention_in,
        attention=rebuilt,
        attention_out=norms.attention_out,
        mlp_in=norms.mlp_in,
        mlp=rebuilt_mlp,
        mlp_out=norms.mlp_out,
        multiplier=multiplier,
        fusion=fusion_of(rebuilt, norms.mlp_in, rebuilt_mlp) if is_plain else None,
    )


def release(layer: nn.Module) -> None:
    """Frees the weights that `rebuild` copied. The module must not run in its old form again."""
    for group in (_projections(layer.self_attn), _gates(layer.mlp)):  # type: ignore[arg-type]  # rebuild saw them
        for module in group or ():
            module._parameters.clear()


class _Norms(NamedTuple):
    attention_in: Norm
    attention_out: Norm | None
    mlp_in: Norm
    mlp_out: Norm | None


def _norms(layer: nn.Module, ops: Ops) -> _Norms:
    """Three habits: norms before (Llama), after (OLMo 2), or before and after (Gemma) attention and MLP."""

    def own(name: str) -> nn.Module | None:
        return getattr(layer, name, None)

    known = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    before, after_attention, before_mlp, after_mlp = map(own, known)
    if after_attention is None:
        raise UnknownStructureError("no post_attention_layernorm")
    if after_mlp is None:
        return _Norms(norm_of(before, ops), None, norm_of(after_attention, ops), None)
    return _Norms(
        norm_of(before, ops), norm_of(after_attention, ops), norm_of(before_mlp, ops), norm_of(after_mlp, ops)
    )


def _attention(module: nn.Module, heads: Heads, materials: Materials) -> Attention:
    projections = _projections(module)
    if projections is None:
        raise UnknownStructureError("no q_proj, k_proj, v_proj and o_proj, and no qkv_proj and o_proj")
    *inputs, output = projections
    width = sum(linear.out_features for linear in inputs)
    if width != (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim:
        raise UnknownStructureError("q, k and v have other widths than the heads that attend")
    return Attention(
        holder=module,
        project=joined(inputs, materials.linear),
        output=joined([output], materials.linear),
        spec=heads.spec,
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        norms=_head_norms(module, materials.ops),
    )


def _head_norms(module: nn.Module, ops: Ops) -> HeadNorms | None:
    found = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
    if found == [None, None]:
        return None
    query, key = (rms_norm_of(norm, ops) if isinstance(norm, nn.Module) else None for norm in found)
    if query is None or key is None:
        raise UnknownStructureError("norms of queries and keys of another kind")
    return HeadNorms(query, key)


def _mlp(module: nn.Module, materials: Materials) -> Mlp:
    projections = _gates(module)
    act = _activation(module)
    if projections is None or act is None:
        return ModuleMlp(module)
    *inputs, down = projections
    return GatedMlp(joined(inputs, materials.linear), act, joined([down], materials.linear), materials.ops)


def _projections(module: nn.Module) -> list[nn.Linear] | None:
    return _linears(module, ("q_proj", "k_proj", "v_proj", "o_proj")) or _linears(module, ("qkv_proj", "o_proj"))


def _gates(module: nn.Module) -> list[nn.Linear] | None:
    if _activation(module) is None:
        return None
    return _linears(module, ("gate_proj", "up_proj", "down_proj")) or _linears(module, ("gate_up_proj", "down_proj"))


def _linears(module: nn.Module, names: Sequence[str]) -> list[nn.Linear] | None:
    """These and no others: a further product has a meaning that is not known here."""
    found = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
    if found.keys() != set(names) or not all(map(is_plain_linear, found.values())):
        return None
    return [found[name] for name in names]


def _activation(module: nn.Module) -> str | None:
    """Judged by its values."""
    act = next((own for name in ("act_fn", "activation_fn") if (own := getattr(module, name, None)) is not None), None)
    return _name_of_activation(act) if callable(act) else None


def _name_of_activation(act: Callable[[Tensor], Tensor]) -> str | None:
    x = torch.linspace(-8, 8, 641)
    for name, function in ACTIVATIONS.items():
        if torch.allclose(act(x), function(x), rtol=1e-6, atol=1e-7):
            return name
    return None
