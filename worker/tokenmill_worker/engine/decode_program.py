"""One decode step as a program over static buffers: read them, run the model, draw, advance. Knows no scheduler.

The state of every row lies on the device: its next token, its position, its pages, how it draws. A step reads it and
leaves it as the next step wants it, so a step in which nobody joins, leaves or begins a page needs nothing from the
host. The host knows what lies there: rows that differ from what a batch says are written anew, and no others. Sizes
depend on the bucket alone, so a CUDA graph can hold the whole step.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.attention.device_rows import TABLE_ALIGNMENT, DecodeStep, DeviceRows
from tokenmill_worker.engine.batch import PAGE_SIZE, Ids, Ints, PackedBatch, Samples
from tokenmill_worker.engine.device_draws import draw
from tokenmill_worker.engine.device_uniform import uniforms
from tokenmill_worker.engine.pages import num_pages_for
from tokenmill_worker.engine.sampler import Settings
from tokenmill_worker.engine.transfer import to_device

POSITION, IS_ACTIVE, OFFSET, SEED, SETTINGS = 0, 1, 2, 3, 4  # columns of a row's numbers; four settings, as bits
NUM_COLUMNS = SETTINGS + 4
UNKNOWN = -1  # for IS_ACTIVE: differs from what any batch says


class Records(NamedTuple):
    """What is written for some rows: everything but their next token."""

    numbers: Ids  # [R, NUM_COLUMNS]
    pages: Ints  # [R, C] as many columns as the longest row of the batch needs; nobody reads beyond a row's context


class DecodeProgram:
    """`prepare`, `run`, read `results`. Rows are the batch's, in its order; those up to the bucket's end are padding.

    `run` may be captured: it waits for nothing and reads and writes nothing but this object's tensors and the KV pool.
    """

    def __init__(self, adapter: Adapter, make_step: DecodeStep, *, max_rows: int, max_model_len: int) -> None:
        self.max_rows = max_rows
        self._adapter, self._make_step = adapter, make_step
        device = adapter.device
        width = -(-num_pages_for(max_model_len) // TABLE_ALIGNMENT) * TABLE_ALIGNMENT
        self._believed = Records(
            np.zeros((max_rows, NUM_COLUMNS), dtype=np.int64), np.zeros((max_rows, width), dtype=np.int32)
        )
        self._numbers = torch.zeros(max_rows, NUM_COLUMNS, dtype=torch.int64, device=device)
        self._pages = torch.zeros(max_rows, width, dtype=torch.int32, device=device)
        self._row_starts = torch.arange(max_rows + 1, dtype=torch.int32, device=device)
        self._keep = torch.arange(max_rows, dtype=torch.int64, device=device)
        self.token_ids = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.results = torch.zeros(3, max_rows, dtype=torch.int64, device=device)  # Drawn.stacked
        self.logits: Tensor | None = None  # [max_rows, V] of the last step that drew, once one did

    def takes(self, batch: PackedBatch) -> bool:
        """Every row decodes, draws plainly and needs no copy."""
        num_rows = batch.num_rows
        if not num_rows == batch.num_tokens == len(batch.samples) <= self.max_rows or batch.page_copies:
            return False
        return bool(Samples.of(batch.samples).is_plain.all())

    @torch.inference_mode()
    def prepare(self, batch: PackedBatch, last: Tensor | None, *, bucket: int) -> None:
        """The buffers as `run` wants them. `last`: what the step before drew, which may lie in `token_ids` itself."""
        self._adapter.prepare_pages(batch)
        self._write_tokens(batch, last)
        self._write_records(self._records(batch, bucket), bucket)

    def run(self, bucket: int, *, is_drawing: bool) -> None:
        """The step. Afterwards the buffers say what the next one reads."""
        numbers, pages = self._numbers[:bucket], self._pages[:bucket]
        position, is_active = numbers[:, POSITION], numbers[:, IS_ACTIVE]
        page = pages.gather(1, (position // PAGE_SIZE)[:, None])[:, 0]
        slots = torch.where(is_active > 0, page * PAGE_SIZE + position % PAGE_SIZE, -1).int()
        rows = DeviceRows(slots, self._row_starts[: bucket + 1], ((position + 1) * is_active).int(), pages)
        step, keep = self._make_step(rows), self._keep[:bucket]
        logits = self._adapter.run(self.token_ids[:bucket], position, keep, step, self._adapter.backend)
        drawn = draw(logits, self._settings(numbers) if is_drawing else None)
        if is_drawing and self.logits is not None:
            self.logits[:bucket] = logits
        self.results[:, :bucket] = drawn.stacked()
        self.token_ids[:bucket] = drawn.token_ids
        position += is_active

    @torch.inference_mode()
    def rehearse(self, run: Callable[[], None]) -> None:
        """Run without leaving a trace: what is stored in pages is what the step itself will store there."""
        kept = [part.clone() for part in (self._numbers, self.token_ids)]
        run()
        for part, before in zip((self._numbers, self.token_ids), kept, strict=True):
            part.copy_(before)

    def distrust_rows(self) -> None:
        """After a step that failed: what the device has of any row may be the step before's or this one's."""
        self._believed.numbers[:, IS_ACTIVE] = UNKNOWN

    @torch.inference_mode()
    def make_room_for_logits(self) -> None:
        """Before the first step that draws."""
        if self.logits is None:
            shape, device = (self.max_rows, self._adapter.vocab_size), self._adapter.device
            self.logits = torch.zeros(shape, dtype=torch.float32, device=device)

    def _settings(self, numbers: Tensor) -> Settings:
        stated = numbers[:, SETTINGS:].contiguous().view(torch.float64)
        own = uniforms(numbers[:, SEED].contiguous(), numbers[:, POSITION] + numbers[:, OFFSET])
        return Settings(*torch.cat([stated, own[:, None]], 1).unsqueeze(-1).unbind(1))

    # What the host has to tell

    def _records(self, batch: PackedBatch, bucket: int) -> Records:
        samples, num_rows = Samples.of(batch.samples), batch.num_rows
        numbers = np.zeros((bucket, NUM_COLUMNS), dtype=np.int64)
        own = numbers[:num_rows]
        own[:, POSITION], own[:, IS_ACTIVE] = batch.positions, 1
        own[:, OFFSET] = samples.positions - batch.positions
        own[:, SEED] = samples.seeds.view(np.int64)
        own[:, SETTINGS:] = np.ascontiguousarray(samples.settings).view(np.int64)
        counts = np.diff(batch.page_starts)
        columns = np.arange(int(counts.max()))
        pages = self._believed.pages[:bucket, : len(columns)].copy()
        pages[:num_rows][columns < counts[:, None]] = batch.page_ids
        return Records(numbers, pages)

    def _write_records(self, wanted: Records, bucket: int) -> None:
        """Those that differ from what the device has; then what it will have when the step has run."""
        num_columns = wanted.pages.shape[1]
        believed = Records(self._believed.numbers[:bucket], self._believed.pages[:bucket, :num_columns])
        differ = (wanted.numbers != believed.numbers).any(1) | (wanted.pages != believed.pages).any(1)
        if differ.any():
            where = np.flatnonzero(differ)
            rows = to_device(where, self._numbers.device)
            self._numbers.index_copy_(0, rows, to_device(wanted.numbers[where], self._numbers.device))
            self._pages[:, :num_columns].index_copy_(0, rows, to_device(wanted.pages[where], self._pages.device))
        believed.numbers[:], believed.pages[:] = wanted
        believed.numbers[:, POSITION] += wanted.numbers[:, IS_ACTIVE]

    def _write_tokens(self, batch: PackedBatch, last: Tensor | None) -> None:
        """Nothing to do where the program itself drew them, in this order."""
        num_rows, carried = batch.num_rows, batch.carried
        is_in_order = last is self.token_ids and np.array_equal(carried.samples, carried.tokens)
        if is_in_order and len(carried.tokens) == num_rows:
            return
        token_ids = to_device(batch.token_ids.astype(np.int64), self.token_ids.device)
        if carried:
            assert last is not None, "a step carries tokens, but none was launched before it"
            tokens, samples = to_device(np.stack(carried).astype(np.int64), self.token_ids.device)
            token_ids[tokens] = last[samples]
        self.token_ids[:num_rows] = token_ids
