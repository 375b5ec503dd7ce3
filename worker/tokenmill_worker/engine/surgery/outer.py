"""Puts a program together from the embedding to the logits, each end compared with the recording."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.attention import activate
from tokenmill_worker.engine.surgery.layer import Layer
from tokenmill_worker.engine.surgery.linear import is_plain_linear
from tokenmill_worker.engine.surgery.norm import norm_of
from tokenmill_worker.engine.surgery.pieces import fast_linear
from tokenmill_worker.engine.surgery.program import Program, rotaries_of
from tokenmill_worker.engine.surgery.recognition import Materials, UnknownStructureError
from tokenmill_worker.engine.surgery.recording import LayerCall, Recording, Trial, head_of
from tokenmill_worker.engine.surgery.ropes import Rotary, ropes_of
from tokenmill_worker.engine.surgery.screening import screening_of
from tokenmill_worker.engine.surgery.verify import COARSE, EXACT, check

Edit = Callable[[Tensor], Tensor]


def build_program(
    adapter: Adapter,
    trial: Trial,
    recording: Recording,
    layers: Sequence[tuple[LayerCall, Layer]],
    materials: Materials,
) -> Program:
    """Raises UnknownStructureError or DifferentResultError where transformers' own outer forward has to stay."""
    calls = [call for call, _ in layers]
    if any(not torch.equal(after.input, before.output) for before, after in pairwise(calls)):
        raise UnknownStructureError("something happens between its layers")
    decoder = _owner(adapter.model, calls[0].module)
    known = rotaries_of(decoder, getattr(adapter.config, "layer_types", None) or ())
    chosen = [_rotary_of(call, known, trial) for call in calls]
    rotaries = sorted(set(chosen))  # those that some layer uses
    program = Program(
        embedding=adapter.model.get_input_embeddings(),
        embedding_scale=_embedding_scale(adapter, trial, calls[0]),
        ropes=[ropes_of(known[index], are_half=calls[0].has_half_embeddings) for index in rotaries],
        layers=[(layer, rotaries.index(own)) for (_, layer), own in zip(layers, chosen, strict=True)],
        norm=norm_of(getattr(decoder, "norm", None), materials.ops),
        head=_head(adapter, materials),
        finish=_finish(adapter, recording),
    )
    _check_program(program, adapter, trial, recording)
    return _screened(program, adapter, recording)


def _screened(program: Program, adapter: Adapter, recording: Recording) -> Program:
    """With the head's arg-max by itself, where the logits are what the head gives and nothing else."""
    is_unchanged = program.finish is _unchanged and torch.equal(cast("Tensor", recording.head_output), recording.logits)
    if recording.head_input is None or not is_unchanged:
        return program
    head = cast("nn.Linear", head_of(adapter.model))
    return replace(program, screening=screening_of(head, program.head, recording.head_input))


def _owner(model: nn.Module, layer: nn.Module) -> nn.Module:
    """The decoder: whoever holds the list of layers."""
    for module in model.modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and any(own is layer for own in child):
                return module
    raise UnknownStructureError("no owner of its layers")


def _embedding_scale(adapter: Adapter, trial: Trial, first: LayerCall) -> float:
    embedding: Any = adapter.model.get_input_embeddings()
    embedded: Tensor = embedding(trial.token_ids)
    for scale in (1.0, float(getattr(adapter.config, "embedding_multiplier", 1.0))):
        if embedded.shape == first.input.shape and torch.equal(embedded * scale, first.input):
            return scale
    raise UnknownStructureError("its first layer is given something else than the embeddings")


def _rotary_of(call: LayerCall, rotaries: Sequence[Rotary], trial: Trial) -> int:
    """Which of the rotaries gives what this layer was given."""
    for index, rotary in enumerate(rotaries):
        try:
            embeddings = rotary(call.input, trial.positions[None])
        except (TypeError, AttributeError, KeyError, ValueError):
            continue  # this one has another form
        if call.embeddings is not None and all(map(torch.equal, embeddings, call.embeddings)):
            return index
    raise UnknownStructureError("its rotations come from elsewhere than its rotary_emb")


def _head(adapter: Adapter, materials: Materials) -> Callable[[Tensor], Tensor]:
    head = head_of(adapter.model)
    made = fast_linear(cast("nn.Linear", head), materials) if is_plain_linear(head) else None
    if made is None:
        raise UnknownStructureError("its head is no plain linear layer")
    return made


def _finish(adapter: Adapter, recording: Recording) -> Edit:
    """What happens to the logits behind the head."""
    if recording.head_output is None:
        raise UnknownStructureError("its head is not called once")
    for edit in _known_edits(adapter.config):
        if torch.allclose(edit(recording.head_output), recording.logits, rtol=1e-5, atol=1e-6):
            return edit
    raise UnknownStructureError("its logits are changed behind the head")


def _unchanged(logits: Tensor) -> Tensor:
    return logits


def _known_edits(config: Any) -> Iterator[Edit]:
    yield _unchanged
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        yield lambda logits: logits / scaling
    if (scale := getattr(config, "logit_scale", None)) is not None:
        yield lambda logits: logits * scale
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        yield lambda logits: torch.tanh(logits / cap) * cap


def _check_program(program: Program, adapter: Adapter, trial: Trial, recording: Recording) -> None:
    """All tokens' logits, and those of a few alone."""
    keep = torch.arange(len(trial.token_ids), device=adapter.device)
    allowed = EXACT if recording.logits.dtype == torch.float32 else COARSE
    with activate(trial.step, adapter.backend):
        check(program(trial.token_ids, trial.positions, keep), recording.logits, allowed)
        check(program(trial.token_ids, trial.positions, keep[3::7]), recording.logits[3::7], allowed)
