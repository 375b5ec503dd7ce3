"""A step on the device: which rows, tokens and pages its kernels work on, as int32 tensors. Knows no kernel.

All of an eager step goes over in one copy that nobody waits for. Sizes that kernels are compiled for (alignment,
the page table's width) are rounded up, so that a step of another size needs no other kernel.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenmill_worker.engine.attention.device_rows import TABLE_ALIGNMENT, DeviceRows
from tokenmill_worker.engine.attention.step import AttentionStep
from tokenmill_worker.engine.batch import Ints, PackedBatch

ALIGNMENT = 4  # int32 values: 16 bytes

_KEY: Hashable = "triton"
_NOBODY = np.zeros(0, dtype=np.int32)
_NO_BATCH = PackedBatch(_NOBODY, _NOBODY, _NOBODY, np.zeros(1, np.int32), _NOBODY, _NOBODY, np.zeros(1, np.int32))


class Tiles(NamedTuple):
    """Up to so many tokens of one row each, from `tokens` on. None: tile t is token t, and row t's only one."""

    num_tiles: int
    rows: Tensor | None = None  # [num_tiles]
    tokens: Tensor | None = None  # [num_tiles]


class Prompts(NamedTuple):
    """Whole sequences side by side: tokens [start, end) of the run, sequence i from starts[i] to starts[i + 1]."""

    start: int
    end: int
    starts: Tensor  # [n + 1], from 0
    longest: int


class Plan:
    """One step's rows by kind: decoding (one token), whole prompts, chunks with history."""

    def __init__(self, batch: PackedBatch, device: torch.device) -> None:
        counts = np.diff(batch.row_starts)
        is_decoding = counts == 1
        is_whole = ~is_decoding & (counts == batch.context_lens)
        self._batch, self._counts, self._device = batch, counts, device
        self._whole, self._chunks = np.flatnonzero(is_whole), np.flatnonzero(~is_decoding & ~is_whole)
        decoding = np.flatnonzero(is_decoding)
        whole_runs = _runs(self._whole)
        slots, row_starts, context_lens, page_table, rows, tokens, *starts = _to_device(
            [
                batch.slots,
                batch.row_starts,
                batch.context_lens,
                page_table_of(batch),
                decoding,
                batch.row_starts[decoding],
                *(batch.row_starts[run[0] : run[-1] + 2] - batch.row_starts[run[0]] for run in whole_runs),
            ],
            device,
        )
        self.rows = DeviceRows(slots, row_starts, context_lens, page_table.view(batch.num_rows, -1))
        self.decoding = Tiles(len(decoding)) if len(decoding) == batch.num_rows else Tiles(len(decoding), rows, tokens)
        self.prompts = [
            Prompts(int(batch.row_starts[run[0]]), int(batch.row_starts[run[-1] + 1]), own, int(counts[run].max()))
            for run, own in zip(whole_runs, starts, strict=True)
        ]

    def longer(self, tile_tokens: int, *, with_prompts: bool) -> Tiles:
        """Tiles of the rows with more than one token: chunks with history, whole prompts only when asked for."""
        rows = np.sort(np.concatenate([self._chunks, self._whole])) if with_prompts else self._chunks
        if not len(rows):
            return Tiles(0)
        per_row = -(-self._counts[rows] // tile_tokens)
        owners = np.repeat(rows, per_row)
        within = np.arange(per_row.sum()) - np.repeat(np.cumsum(per_row) - per_row, per_row)
        firsts = self._batch.row_starts[owners] + within * tile_tokens
        seen = self._batch.context_lens[owners] - self._counts[owners] + within * tile_tokens
        order = np.argsort(-seen, kind="stable")  # the longest first, so that the last to start are soon done
        on_device = _to_device([owners[order], firsts[order]], self._device)
        return Tiles(len(owners), *on_device)


class DecodePlan:
    """The plan of a step in which each row has one token and nothing is known on the host but sizes."""

    def __init__(self, rows: DeviceRows) -> None:
        self.rows = rows
        self.decoding = Tiles(len(rows.context_lens))
        self.prompts: list[Prompts] = []

    def longer(self, tile_tokens: int, *, with_prompts: bool) -> Tiles:
        del tile_tokens, with_prompts
        return Tiles(0)


def plan_of(step: AttentionStep, device: torch.device) -> "Plan | DecodePlan":
    return step.plan(_KEY, lambda: Plan(step.batch, device))


def decode_step(rows: DeviceRows) -> AttentionStep:
    """A step that reads `rows` and nothing of the host, for capture in a CUDA graph: one token a row, T = R.

    Only for the backend of this folder: it finds its plan there and asks for nothing else.
    """
    plans: dict[Hashable, object] = {_KEY: DecodePlan(rows)}
    return AttentionStep(_NO_BATCH, rows.slots, plans)


def page_table_of(batch: PackedBatch) -> Ints:
    """[R, W]: each row's pages, then zeros."""
    counts = np.diff(batch.page_starts)
    width = -(-int(counts.max()) // TABLE_ALIGNMENT) * TABLE_ALIGNMENT
    table = np.zeros((batch.num_rows, width), dtype=np.int32)
    table[np.arange(width) < counts[:, None]] = batch.page_ids
    return table


def _runs(rows: np.ndarray) -> list[np.ndarray]:
    """Rows that stand side by side, together."""
    return np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []


def _to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """One copy for all, each array at an aligned place and flat."""
    sizes = [array.size for array in arrays]
    places = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)])
    buffer = torch.empty(int(places[-1]), dtype=torch.int32, pin_memory=device.type == "cuda")
    view = buffer.numpy()
    for array, place in zip(arrays, places, strict=False):
        view[place : place + array.size] = array.reshape(-1)
    moved = buffer.to(device, non_blocking=True)
    return [moved[place : place + size] for place, size in zip(places, sizes, strict=False)]
