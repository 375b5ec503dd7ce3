"""The operation itself: record, rebuild layer by layer, drive the layers without transformers' outer forward."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.attention import AttentionStep
from tokenmill_worker.engine.batch import PackedBatch
from tokenmill_worker.engine.surgery.layer import Layer, ModuleMlp
from tokenmill_worker.engine.surgery.linear import PlainLinear, make_library_linear, make_linear
from tokenmill_worker.engine.surgery.ops import LIBRARY, PLAIN
from tokenmill_worker.engine.surgery.outer import build_program
from tokenmill_worker.engine.surgery.pieces import Replaced, replace_pieces
from tokenmill_worker.engine.surgery.recognition import Materials, UnknownStructureError, rebuild, release
from tokenmill_worker.engine.surgery.recording import LayerCall, Recording, Trial, decoder_layers, record, rope_of
from tokenmill_worker.engine.surgery.report import Report
from tokenmill_worker.engine.surgery.verify import DifferentResultError, check_layer, check_structure, run_alone

FAULTS = (UnknownStructureError, DifferentResultError, RuntimeError, TypeError, ValueError, AttributeError)


def standard_materials(adapter: Adapter) -> Materials:
    """The C++ library's operations go with its attention."""
    if adapter.backend.name == "cpu":
        return Materials(make_library_linear, LIBRARY)
    return Materials(make_linear, PLAIN)


@torch.inference_mode()
def operate(adapter: Adapter, batch: PackedBatch, materials: Materials | None = None) -> Report:
    """`batch`: a step of fresh prompts for the pool that the adapter is bound to. The model is tier 1 afterwards."""
    operation = _Operation(adapter, batch, materials or standard_materials(adapter))
    operation.rebuild_layers()
    operation.install()
    return operation.report()


class _Operation:
    def __init__(self, adapter: Adapter, batch: PackedBatch, materials: Materials) -> None:
        token_ids, positions, slots = (
            torch.as_tensor(part, dtype=torch.int64, device=adapter.device)
            for part in (batch.token_ids, batch.positions, batch.slots)
        )
        self._adapter, self._materials = adapter, materials
        self._trial = Trial(token_ids, positions, AttentionStep.of(batch, slots))
        self._recording: Recording = record(adapter, self._trial)
        self._layers: list[tuple[LayerCall, Layer]] = []
        self._known_kinds: dict[Hashable, str | None] = {}  # with the reason why a kind stays as it is
        self._reasons: list[str] = []
        self._pieces = Replaced()
        self._has_program = self._is_screened = False

    def rebuild_layers(self) -> None:
        """One after the other, so that weights are held twice for a single layer at most."""
        for call in self._recording.layers:
            try:
                self._layers.append((call, self._rebuilt(call)))
            except FAULTS as error:
                self._reasons.append(f"{type(call.module).__name__} stays: {_first_line(error)}")
            else:
                release(call.module)

    def _rebuilt(self, call: LayerCall) -> Layer:
        step, backend = self._trial.step, self._adapter.backend
        if call.input.dtype != torch.float32:
            self._check_kind(call)
        layer = rebuild(call.module, call.heads, self._materials)
        check_layer(layer, call, step, backend)
        return layer

    def _check_kind(self, call: LayerCall) -> None:
        kind = _kind(call)
        if kind not in self._known_kinds:
            self._known_kinds[kind] = self._objection(call)
        if (reason := self._known_kinds[kind]) is not None:
            raise DifferentResultError(reason)

    def _objection(self, call: LayerCall) -> str | None:
        plain = Materials(PlainLinear, PLAIN)
        try:
            check_structure(
                lambda module: rebuild(module, call.heads, plain), call, self._trial.step, self._adapter.backend
            )
        except FAULTS as error:
            return _first_line(error)
        return None

    def install(self) -> None:
        """The rebuilt layers take their places, then what is left is done piece by piece."""
        num_layers = len(decoder_layers(self._adapter))
        if self._layers and len(self._layers) == num_layers:
            self._install_program()
        for call, layer in self._layers:
            if isinstance(layer.mlp, ModuleMlp):
                self._pieces = self._pieces.plus(replace_pieces(layer.mlp.module, self._materials))
            if not self._has_program:
                _install_forward(call, layer)
        if not self._has_program:
            self._replace_other_pieces()

    def _install_program(self) -> None:
        try:
            program = build_program(self._adapter, self._trial, self._recording, self._layers, self._materials)
        except FAULTS as error:
            self._reasons.append(f"transformers' outer forward stays: {_first_line(error)}")
        else:
            self._adapter.program, self._adapter.answer = program, program.answers
            self._has_program, self._is_screened = True, program.screening is not None

    def _replace_other_pieces(self) -> None:
        """The rebuilt layers hold no more linears; what they were built from is passed over."""
        rebuilt = {id(module) for call, _ in self._layers for module in call.module.modules()}
        self._pieces = self._pieces.plus(replace_pieces(self._adapter.model, self._materials, but=rebuilt))

    def report(self) -> Report:
        return Report(
            num_layers=len(decoder_layers(self._adapter)),
            num_rebuilt=len(self._layers),
            has_program=self._has_program,
            is_screened=self._is_screened,
            pieces=self._pieces,
            reasons=tuple(self._reasons),
        )


def _kind(call: LayerCall) -> Hashable:
    """Layers of one kind differ in nothing but their weights."""
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in call.module.named_parameters())
    settings = call.heads._replace(spec=call.heads.spec._replace(sinks=None))
    return type(call.module), settings, call.gives_tuple, shapes


def _install_forward(call: LayerCall, layer: Layer) -> None:
    """The module stays, and with it all that the outer forward reads from it; only what it computes is new."""

    are_half = call.has_half_embeddings

    def forward(hidden_states: Tensor, *_: object, position_embeddings: tuple[Tensor, Tensor], **__: object) -> Any:
        rope = rope_of(position_embeddings, hidden_states.dtype, are_half=are_half)
        result = run_alone(layer, hidden_states[0], rope)[None]
        return (result,) if call.gives_tuple else result

    call.module.forward = forward  # on this instance only


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
