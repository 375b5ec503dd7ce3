"""Attention by the C++ library: the Backend of CPUs. Keeps keys and values in the library's own order (kernels.h)."""

import torch
from torch import Tensor

from tokenmill_worker.engine.attention.backend import AttentionSpec, KVPages
from tokenmill_worker.engine.attention.sdpa import SdpaBackend
from tokenmill_worker.engine.attention.step import AttentionStep

DTYPES = (torch.float32, torch.bfloat16)
MAX_KEY_DIM = 1024  # as in csrc/kernels.h


class CpuBackend:
    """The library must be loaded. What it does not know (float16, odd head dimensions) goes the way of SDPA."""

    name = "cpu"
    note = ""

    def __init__(self) -> None:
        self._others = SdpaBackend()

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, pages: KVPages, step: AttentionStep, spec: AttentionSpec
    ) -> Tensor:
        if not knows(pages):
            return self._others.attend(query, key, value, pages, step, spec)
        result: Tensor = torch.ops.tokenmill_cpu.attention(query, key, value, *pages, *indices(step), *spec)
        return result

    def reads_only_stored(self, pages: KVPages) -> bool:
        return knows(pages)

    def rope_attend(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        pages: KVPages,
        step: AttentionStep,
        spec: AttentionSpec,
        num_heads: int,
    ) -> Tensor | None:
        if not knows_rope(pages):
            return None
        result: Tensor = torch.ops.tokenmill_cpu.rope_attention(
            qkv, cos, sin, *pages, *indices(step), num_heads, pages.keys.shape[1], *spec
        )
        return result


def knows(pages: KVPages) -> bool:
    """Decided by the pages alone, so that a layer never changes the order in which it keeps them."""
    key_dim = pages.keys.shape[3]
    return pages.keys.dtype in DTYPES and key_dim % 2 == 0 and key_dim <= MAX_KEY_DIM


def knows_rope(pages: KVPages) -> bool:
    return knows(pages) and pages.keys.shape[3] == pages.values.shape[3]


def indices(step: AttentionStep) -> list[Tensor]:
    """The ops' (row_starts, context_lens, page_ids, page_starts, slots): views of the batch's own arrays."""
    batch = step.batch

    def views() -> list[Tensor]:
        arrays = (batch.row_starts, batch.context_lens, batch.page_ids, batch.page_starts, batch.slots)
        return [torch.from_numpy(array) for array in arrays]

    return step.plan("cpu", views)
