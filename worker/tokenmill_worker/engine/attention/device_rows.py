"""A decode step as a device sees it: one token a row, and nothing on the host but sizes. Knows no kernel."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

from torch import Tensor

from tokenmill_worker.engine.attention.backend import Backend
from tokenmill_worker.engine.attention.step import AttentionStep

TABLE_ALIGNMENT = 16  # columns of a page table: kernels are compiled for its width's divisibility


class DeviceRows(NamedTuple):
    """R rows in one run of T tokens, as in PackedBatch, int32. A CUDA graph reads these very tensors at each replay."""

    slots: Tensor  # [T] page * PAGE_SIZE + offset; below zero: a padding token, which nothing is stored for
    row_starts: Tensor  # [R + 1]
    context_lens: Tensor  # [R]; 0: a padding row, whose attention is 0
    page_table: Tensor  # [R, W], W a multiple of TABLE_ALIGNMENT; what lies beyond a row's context is not read


DecodeStep = Callable[[DeviceRows], AttentionStep]


class ReadsDeviceRows(Protocol):
    """A backend that decodes from device rows alone: what a step over them is to it."""

    def decode_step(self, rows: DeviceRows) -> AttentionStep:
        """For this backend only. Attention with it waits for nothing and may be captured."""
        ...


def decode_step_of(backend: Backend) -> DecodeStep | None:
    """None where the backend plans on the host."""
    if not hasattr(backend, "decode_step"):
        return None
    return cast("ReadsDeviceRows", backend).decode_step
