"""The custom op `tokenmill::attention`: stores a step's keys and values, then attends. Opaque to torch.compile.

The op takes one layer's tensors. What all layers of a step share (rows, pages, the backend) is set around the model's
forward with `activate`, so that a compiled layer is one artifact whatever its index and whatever the batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from tokenmill_worker.engine.attention.backend import AttentionSpec, Backend, KVPages
from tokenmill_worker.engine.attention.step import AttentionStep

_NAME = "tokenmill::attention"
_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor(a!) key_pages, Tensor(b!) value_pages, "
    "float scale, int? window, float? softcap, Tensor? sinks) -> Tensor"
)

_active: ContextVar[tuple[AttentionStep, Backend]] = ContextVar("tokenmill_attention_step")


@contextmanager
def activate(step: AttentionStep, backend: Backend) -> Iterator[None]:
    """Every call of the op inside, in this thread, belongs to `step`."""
    token = _active.set((step, backend))
    try:
        yield
    finally:
        _active.reset(token)


def active() -> tuple[AttentionStep, Backend]:
    """The step under way and what computes its attention."""
    return _active.get()


def attention(query: Tensor, key: Tensor, value: Tensor, pages: KVPages, spec: AttentionSpec) -> Tensor:
    """query [T, H, Dk], key [T, kv_heads, Dk], value [T, kv_heads, Dv] -> [T, H, Dv]; writes the step's slots."""
    result: Tensor = torch.ops.tokenmill.attention(query, key, value, pages.keys, pages.values, *spec)
    return result


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    step, backend = _active.get()
    pages, spec = KVPages(key_pages, value_pages), AttentionSpec(scale, window, softcap, sinks)
    return backend.attend(query, key, value, pages, step, spec)


def _shape(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[1], value.shape[2])


torch.library.define(_NAME, _SCHEMA)
torch.library.impl(_NAME, "default", _run)
torch.library.register_fake(_NAME, _shape)
