"""One packed forward of the model as transformers made it, written down: what tier 1 has to reproduce."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.attention import AttentionSpec, AttentionStep, Backend, KVPages
from tokenmill_worker.engine.surgery.layer import Rope
from tokenmill_worker.engine.surgery.recognition import Heads


class Trial(NamedTuple):
    """One step to try things on. The pages are bound, and a second run over them changes nothing."""

    token_ids: Tensor  # [T]
    positions: Tensor  # [T]
    step: AttentionStep


class LayerCall(NamedTuple):
    """What one decoder layer was given and gave."""

    module: nn.Module
    input: Tensor  # [T, C]
    output: Tensor  # [T, C]
    embeddings: tuple[Tensor, Tensor] | None  # the rotations in the layer's own form
    heads: Heads
    gives_tuple: bool

    @property
    def rope(self) -> Rope:
        assert self.embeddings is not None, "asked only of layers that were rebuilt"
        return rope_of(self.embeddings, self.input.dtype, are_half=self.has_half_embeddings)

    @property
    def has_half_embeddings(self) -> bool:
        return self.embeddings is not None and are_half(self.embeddings)


class Recording(NamedTuple):
    layers: list[LayerCall]
    head_input: Tensor | None  # [T, C]
    head_output: Tensor | None  # [T, V]
    logits: Tensor  # [T, V]


class _AttendCall(NamedTuple):
    spec: AttentionSpec
    num_heads: int


class _Witness:
    """A backend that writes down who attends with how many heads, in the order of the adapter's modules."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name, self.note = backend.name, backend.note
        self.calls: list[_AttendCall] = []

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, pages: KVPages, step: AttentionStep, spec: AttentionSpec
    ) -> Tensor:
        self.calls.append(_AttendCall(spec, query.shape[1]))
        return self._backend.attend(query, key, value, pages, step, spec)


class _Call(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


@torch.inference_mode()
def record(adapter: Adapter, trial: Trial) -> Recording:
    """Layers of another form than [1, T, C] -> [1, T, C] are left out."""
    layers, head = decoder_layers(adapter), head_of(adapter.model)
    witness = _Witness(adapter.backend)
    with ExitStack() as stack:
        calls = {layer: stack.enter_context(_watched(layer)) for layer in layers}
        head_calls = stack.enter_context(_watched(head)) if head is not None else []
        logits = adapter.run(trial.token_ids, trial.positions, torch.arange(len(trial.token_ids)), trial.step, witness)
    heads = _heads(adapter, witness)
    seen = [_layer_call(layer, calls[layer], heads[index]) for index, layer in enumerate(layers)]
    head_call = head_calls[0] if len(head_calls) == 1 else None
    return Recording(
        layers=[call for call in seen if call is not None],
        head_input=None if head_call is None else head_call.args[0].flatten(0, -2),
        head_output=None if head_call is None else head_call.result.flatten(0, -2),
        logits=logits,
    )


def decoder_layers(adapter: Adapter) -> list[nn.Module]:
    """The list in the model whose members attend once each, in this order. Empty if there is none."""
    attending = adapter.attention_modules
    for module in adapter.model.modules():
        if isinstance(module, nn.ModuleList) and _holds(list(module), attending):
            return list(module)
    return []


def _holds(layers: Sequence[nn.Module], attending: Sequence[nn.Module]) -> bool:
    return len(layers) == len(attending) and all(
        any(part is own for part in layer.modules()) for layer, own in zip(layers, attending, strict=True)
    )


def head_of(model: PreTrainedModel) -> nn.Module | None:
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers' own
    return head


def _heads(adapter: Adapter, witness: _Witness) -> list[Heads]:
    return [
        Heads(call.spec, call.num_heads, shape.kv_heads, shape.key_dim if shape.key_dim == shape.value_dim else 0)
        for call, shape in zip(witness.calls, adapter.shapes, strict=True)
    ]


def _layer_call(layer: nn.Module, calls: Sequence[_Call], heads: Heads) -> LayerCall | None:
    if len(calls) != 1 or not heads.head_dim:
        return None
    args, kwargs, result = calls[0]
    hidden = args[0] if args else kwargs.get("hidden_states")
    output = result[0] if isinstance(result, tuple) else result
    if not isinstance(hidden, Tensor) or hidden.dim() != 3 or hidden.shape != output.shape:
        return None
    embeddings = kwargs.get("position_embeddings")
    if not isinstance(embeddings, tuple) or len(embeddings) != 2:
        embeddings = None
    return LayerCall(layer, hidden[0].clone(), output[0].clone(), embeddings, heads, isinstance(result, tuple))


def are_half(embeddings: tuple[Tensor, Tensor]) -> bool:
    """[1, T, R] has two equal halves; some models give [1, T, R / 2]. Asked once: at position 0 all are equal."""
    low, high = embeddings[0].chunk(2, -1)
    return low.shape != high.shape or not torch.equal(low, high)


def rope_of(embeddings: tuple[Tensor, Tensor], dtype: torch.dtype, *, are_half: bool) -> Rope:
    cos, sin = (part.flatten(0, -2).to(dtype) for part in embeddings)
    return Rope(torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)) if are_half else Rope(cos, sin)


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[_Call]]:
    calls: list[_Call] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        del module
        calls.append(_Call(args, kwargs, result))

    handle = module.register_forward_hook(see, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
