"""The paged KV pool's memory: which layer has which pages, copies and clearing. Knows no page's owner (pages.py)."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenmill_worker.engine.attention import KVPages
from tokenmill_worker.engine.attention.cpu import memory
from tokenmill_worker.engine.batch import PAGE_SIZE


class LayerShape(NamedTuple):
    """What one attention layer stores for each token."""

    kv_heads: int
    key_dim: int
    value_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return self.kv_heads * (self.key_dim + self.value_dim) * dtype.itemsize


class KVPool:
    """Pages for every layer. Layers of one shape share a tensor, so that a page is copied or cleared at once.

    Memory comes uninitialized, and on the CPU is not even taken before its first use: a page is cleared when begun,
    unless attention reads only what was stored (attention/backend.py). There it lies in large pages of the system, so
    that a layer's first keys and its first values take 2 MB each, and what comes next takes none until those are full.
    """

    def __init__(
        self, layers: Sequence[LayerShape], *, num_pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_pages = num_pages
        self._groups: dict[LayerShape, KVPages] = {}
        for shape, count in Counter(layers).items():
            leading = (count, num_pages, shape.kv_heads, PAGE_SIZE)
            self._groups[shape] = KVPages(
                _empty(*leading, shape.key_dim, dtype=dtype, device=device),
                _empty(*leading, shape.value_dim, dtype=dtype, device=device),
            )
        taken: Counter[LayerShape] = Counter()
        self.layers: list[KVPages] = []
        for shape in layers:
            keys, values = self._groups[shape]
            self.layers.append(KVPages(keys[taken[shape]], values[taken[shape]]))
            taken[shape] += 1

    def clear(self, page_ids: Tensor) -> None:
        """Zeroes pages that change hands: a NaN that a poisoned row left there would pass any mask."""
        for part in self._parts():
            part.index_fill_(1, page_ids, 0)

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        for part in self._parts():
            part.index_copy_(1, targets, part.index_select(1, sources))

    def _parts(self) -> list[Tensor]:
        return [part for group in self._groups.values() for part in group]


def _empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return memory.empty(*shape, dtype=dtype)
    return torch.empty(shape, dtype=dtype, device=device)
