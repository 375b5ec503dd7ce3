"""Runs any Hugging Face causal LM, unmodified, on packed rows: binds its attention layers to pages. Knows no scheduler.

Attention is the only operation of a decoder that looks at other tokens, and transformers lets a program put its own in:
`AttentionInterface.register`. No mask function is registered under our name, so the model never builds a mask.
Everything else a layer does is per token, and does not care whose tokens lie in the row beside it.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from tokenmill_worker.engine.answers import Answers
from tokenmill_worker.engine.api import ModelError
from tokenmill_worker.engine.attention import (
    AttentionSpec,
    AttentionStep,
    Backend,
    KVPages,
    activate,
    attention,
    needs_clean_pages,
)
from tokenmill_worker.engine.batch import PAGE_SIZE, Bools, PackedBatch
from tokenmill_worker.engine.kv_pool import KVPool, LayerShape
from tokenmill_worker.engine.transfer import to_device

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]  # (token ids [T], positions [T], keep [S]) -> logits [S, V]
Answer = Callable[[Tensor, Tensor, Tensor, Bools], Answers]  # the same with whether the likeliest token is enough [S]

PACKED = "tokenmill"
PROBE = "tokenmill_probe"


class Adapter:
    """One model in packed mode. Raises ModelError, with the reason, for a model that cannot be run this way.

    `layers` is what each distinct KV holder stores; a layer that attends to another layer's keys shares its pages.
    """

    def __init__(self, model: PreTrainedModel, backend: Backend, *, least_of_ranks: Callable[[int], int] = int) -> None:
        _refuse_if_not_pluggable(model)
        self.model = model
        self.backend = backend
        self.least_of_ranks = least_of_ranks  # what processes that share the model agree on
        self.config: PretrainedConfig = model.config.get_text_config(decoder=True)
        self.device: torch.device = model.device
        self.vocab_size: int = cast("nn.Embedding", model.get_input_embeddings()).num_embeddings
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        probe = _probe(model, self.vocab_size)
        self.program: Forward | None = None  # takes the place of the model's own forward (tier 1)
        self.answer: Answer | None = None  # the same, where it can do with less than all logits
        self.layers: list[LayerShape] = probe.shapes
        self.kv_dtype: torch.dtype = probe.dtype
        self.passes_window: bool = probe.has_window
        self._modules: list[tuple[nn.Module, int]] = probe.bindings
        self._pool: KVPool | None = None
        self._needs_clean_pages = True

    @property
    def attention_modules(self) -> list[nn.Module]:
        """In the order in which they attend."""
        return [module for module, _ in self._modules]

    @property
    def shapes(self) -> list[LayerShape]:
        """What each of the attention modules stores, or shares."""
        return [self.layers[layer] for _, layer in self._modules]

    def bind(self, pool: KVPool) -> None:
        """From now on the model's attention reads and writes this pool."""
        self._pool = pool
        self._needs_clean_pages = needs_clean_pages(self.backend, pool.layers)
        for module, layer in self._modules:
            module._kv = pool.layers[layer]  # type: ignore[assignment]  # plain data: no parameter, no buffer

    @torch.inference_mode()
    def logits(self, batch: PackedBatch, keep: np.ndarray, last: Tensor | None = None) -> Tensor:
        """The packed forward: logits [len(keep), V] after the tokens at indexes `keep` of the run. Fills the slots.

        `last`: what the step before drew, on the device, for the tokens that are carried from there.
        """
        token_ids, positions, kept, step = self._prepared(batch, keep, last)
        return self.run(token_ids, positions, kept, step, self.backend)

    @torch.inference_mode()
    def answers(self, batch: PackedBatch, keep: np.ndarray, is_greedy: Bools) -> Answers:
        """The same; of the tokens that are greedy, [len(keep)], maybe the likeliest token in place of their logits."""
        if self.answer is None:
            return Answers.of_logits(self.logits(batch, keep))
        token_ids, positions, kept, step = self._prepared(batch, keep)
        with activate(step, self.backend):
            return self.answer(token_ids, positions, kept, is_greedy)

    def _prepared(
        self, batch: PackedBatch, keep: np.ndarray, last: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, AttentionStep]:
        """Token ids, positions, what is kept, and the step, on the device; its pages are ready."""
        assert self._pool is not None, "bind a pool first"
        packed = np.stack([batch.token_ids, batch.positions, batch.slots]).astype(np.int64)
        token_ids, positions, slots = to_device(packed, self.device)  # one transfer for all three
        if batch.carried:
            assert last is not None, "a step carries tokens, but none was launched before it"
            tokens, samples = to_device(np.stack(batch.carried).astype(np.int64), self.device)
            token_ids[tokens] = last[samples]
        self.prepare_pages(batch)
        step = AttentionStep.of(batch, slots)
        return token_ids, positions, to_device(keep.astype(np.int64), self.device), step

    def run(self, token_ids: Tensor, positions: Tensor, keep: Tensor, step: AttentionStep, backend: Backend) -> Tensor:
        """The model over one step whose pages are ready: logits [len(keep), V]."""
        with activate(step, backend):
            if self.program is not None:
                return self.program(token_ids, positions, keep)
            return self._forward(token_ids[None], positions[None], keep)

    @torch.inference_mode()
    def plain_logits(self, token_ids: Sequence[int]) -> Tensor:
        """What the model says by itself, with its own eager attention and its own mask: [T, V]."""
        with attention_implementation(self.model, "eager"):
            ids = torch.as_tensor([list(token_ids)], device=self.device)
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
            return logits

    def prepare_pages(self, batch: PackedBatch) -> None:
        """Copies and clears that must be done before anything is written."""
        assert self._pool is not None
        if batch.page_copies:
            sources, targets = to_device(np.array(batch.page_copies), self.device).unbind(1)
            self._pool.copy(sources, targets)
        if not self._needs_clean_pages:
            return
        begun = batch.slots[batch.slots % PAGE_SIZE == 0] // PAGE_SIZE
        if len(begun):
            self._pool.clear(to_device(begun.astype(np.int64), self.device))

    def _forward(self, token_ids: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
        selected: dict[str, Any] = {"logits_to_keep": keep} if self._keeps_logits else {}
        logits: Tensor = self.model(input_ids=token_ids, position_ids=positions, use_cache=False, **selected).logits[0]
        return logits if logits.shape[0] == keep.shape[0] else logits.index_select(0, keep)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """AttentionInterface's contract: query [1, H, T, Dk], key and value [1, kv_heads, T, D] -> [1, T, H, Dv]."""
    del attention_mask  # None: the probe made sure that no mask is built under our name
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    spec = AttentionSpec(scale, sliding_window, softcap, s_aux)
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))  # [T, heads, D]
    return attention(query, key, value, cast("KVPages", module._kv), spec)[None], None


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model attends through `name` inside, and through the packed path again afterwards."""
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(PACKED)


@dataclass(frozen=True, slots=True)
class _Call:
    """One layer's call of the attention function during the probe. The tensors are held, so addresses stay unique."""

    module: nn.Module
    key: Tensor
    value: Tensor
    window: int | None

    @property
    def shape(self) -> LayerShape:
        return LayerShape(self.key.shape[1], self.key.shape[3], self.value.shape[3])

    @property
    def identity(self) -> tuple[int, int]:
        """Equal for two layers exactly when they attend to the very same keys and values."""
        return self.key.data_ptr(), self.value.data_ptr()


class _Probe:
    """Every attention call of one forward, in order: which modules attend, and what each has to store."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.complaints: list[str] = []

    def record(self, call: _Call, num_tokens: int, **extras: object) -> None:
        self.calls.append(call)
        if call.key.shape[2] != num_tokens:
            self.complaints.append("attends to other positions than the row's own tokens")
        if extras.get("attention_mask") is not None:
            self.complaints.append("builds an attention mask of its own")
        if extras.get("position_bias") is not None:
            self.complaints.append("adds a learned position bias to its attention scores")
        if extras.get("is_causal") is False or getattr(call.module, "is_causal", True) is False:
            self.complaints.append("attends in both directions")

    def check(self) -> None:
        if not self.calls:
            raise _refusal("none of its layers calls the attention function that it was given")
        if len({id(call.module) for call in self.calls}) < len(self.calls):
            raise _refusal("one attention layer runs several times in a forward pass")
        if self.complaints:
            raise _refusal(f"it {self.complaints[0]}")

    @property
    def dtype(self) -> torch.dtype:
        return self.calls[0].key.dtype

    @property
    def has_window(self) -> bool:
        return any(call.window is not None for call in self.calls)

    @property
    def shapes(self) -> list[LayerShape]:
        return [call.shape for call in self._holders()]

    @property
    def bindings(self) -> list[tuple[nn.Module, int]]:
        holders = {call.identity: index for index, call in enumerate(self._holders())}
        return [(call.module, holders[call.identity]) for call in self.calls]

    def _holders(self) -> list[_Call]:
        return list({call.identity: call for call in reversed(self.calls)}.values())[::-1]


_probing: ContextVar[_Probe] = ContextVar("tokenmill_probe")


def _probe_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    call = _Call(module, key, value, kwargs.get("sliding_window"))
    _probing.get().record(call, query.shape[2], attention_mask=attention_mask, **kwargs)
    return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


@torch.inference_mode()
def _probe(model: PreTrainedModel, vocab_size: int) -> _Probe:
    """A forward over a few tokens, to see which modules attend and with what shapes, whatever they are called."""
    probe, device = _Probe(), model.device
    token = _probing.set(probe)
    token_ids = torch.arange(5, device=device)[None] % vocab_size
    positions = torch.tensor([[0, 1, 2, 0, 1]], device=device)
    try:
        with attention_implementation(model, PROBE):
            model(input_ids=token_ids, position_ids=positions, use_cache=False)
    finally:
        _probing.reset(token)
    probe.check()
    return probe


def _refuse_if_not_pluggable(model: PreTrainedModel) -> None:
    if getattr(model, "_is_stateful", False):
        raise _refusal("it keeps a recurrent state, which runs on from one sequence of the row into the next")
    if not model._can_set_attn_implementation():
        raise _refusal("its attention does not go through transformers' AttentionInterface")
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise _refusal("it takes no position_ids, so a second sequence in the row cannot start at position 0")


def _refusal(reason: str) -> ModelError:
    return ModelError(f"this model cannot run in a packed row: {reason}")


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(PROBE, _probe_attention)
