"""What every attention backend is given and must do. Knows no kernel."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from torch import Tensor

from tokenmill_worker.engine.attention.step import AttentionStep


class KVPages(NamedTuple):
    """One layer's part of the paged KV pool. Dk and Dv may differ.

    The order inside a page is the backend's own affair: others copy and clear pages whole. `store` keeps this one.
    """

    keys: Tensor  # [num_pages, kv_heads, PAGE_SIZE, Dk]
    values: Tensor  # [num_pages, kv_heads, PAGE_SIZE, Dv]


class AttentionSpec(NamedTuple):
    """A layer's arithmetic: softmax(softcap(scale * q k)) with, per query head, one more logit that has no value.

    `window`: a token sees itself and the window - 1 tokens before it; None sees all before it.
    `softcap`: scores become softcap * tanh(score / softcap). `sinks`: the extra logits, [heads].
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


class ReadsOnlyStored(Protocol):
    """The method `reads_only_stored` of a backend for whose pages nobody has to clear what others left there."""

    def __call__(self, pages: KVPages) -> bool:
        """Whether slots without a token of the row's own are never read, not even to be masked."""
        ...


class Backend(Protocol):
    """Stores the step's keys and values in their pages, and computes attention of a packed row."""

    name: str
    note: str  # why it runs in place of a faster one; empty where it does not

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, pages: KVPages, step: AttentionStep, spec: AttentionSpec
    ) -> Tensor:
        """query [T, H, Dk], key [T, kv_heads, Dk], value [T, kv_heads, Dv] -> [T, H, Dv].

        Row r's result may depend on row r's tokens and pages alone: whatever is masked out must be its own too,
        because a masked NaN is still a NaN.
        """
        ...


def needs_clean_pages(backend: Backend, layers: Iterable[KVPages]) -> bool:
    reads_only_stored: ReadsOnlyStored | None = getattr(backend, "reads_only_stored", None)
    return reads_only_stored is None or not all(map(reads_only_stored, layers))


def store(pages: KVPages, step: AttentionStep, key: Tensor, value: Tensor) -> None:
    """In the order that the shapes say."""
    for part, tokens in zip(pages, (key, value), strict=True):
        by_slot = part.transpose(1, 2)  # [num_pages, PAGE_SIZE, kv_heads, D]
        by_slot.index_put_(step.places, tokens)
