"""From a step's rows to one packed batch: a few operations on whole arrays. Knows no policy and no device."""

from functools import partial

import numpy as np

from tokenmill_worker.engine.batch import (
    NOTHING_CARRIED,
    PAGE_SIZE,
    Bools,
    Carried,
    Ints,
    PackedBatch,
    SampleRow,
    Samples,
)
from tokenmill_worker.engine.pages import num_pages_for
from tokenmill_worker.engine.rows import Rows
from tokenmill_worker.engine.scheduler import Scheduled


def pack(step: Scheduled, rows: Rows) -> PackedBatch:
    """The scheduled tokens of all rows end to end, and nothing else. The rows' pages are already theirs."""
    return _pack_one(step, rows) if len(step) == 1 else _pack_all(step, rows)


def _pack_one(step: Scheduled, rows: Rows) -> PackedBatch:
    """The same for a row that is alone: its tokens and pages lie side by side already. Half the time."""
    row, length, end = int(step.rows[0]), int(step.num_tokens[0]), int(step.context_lens[0])
    done, num_pages = end - length, num_pages_for(end)
    positions = np.arange(done, end, dtype=np.int32)
    page_ids = rows.page_ids[row, :num_pages].copy()
    row_starts = np.array([0, length], dtype=np.int32)
    return PackedBatch(
        token_ids=rows.token_ids[row, done:end].copy(),
        positions=positions,
        slots=page_ids[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE,
        row_starts=row_starts,
        context_lens=step.context_lens,
        page_ids=page_ids,
        page_starts=np.array([0, num_pages], dtype=np.int32),
        samples=_samples(step, rows),
        page_copies=_page_copies(step, rows.is_forked[step.rows]),
        carried=_carried(step, row_starts, rows),
    )


def _pack_all(step: Scheduled, rows: Rows) -> PackedBatch:
    num_pages = (step.context_lens + (PAGE_SIZE - 1)) // PAGE_SIZE
    row_starts = _starts(step.num_tokens)
    owners, positions = _places(step, row_starts)
    pages = rows.page_ids[owners, positions // PAGE_SIZE]
    return PackedBatch(
        token_ids=rows.token_ids[owners, positions],
        positions=positions,
        slots=pages * PAGE_SIZE + positions % PAGE_SIZE,
        row_starts=row_starts,
        context_lens=step.context_lens,
        page_ids=_page_ids(step.rows, num_pages, rows),
        page_starts=_starts(num_pages),
        samples=_samples(step, rows),
        page_copies=_page_copies(step, rows.is_forked[step.rows]),
        carried=_carried(step, row_starts, rows),
    )


def _places(step: Scheduled, row_starts: Ints) -> tuple[Ints, Ints]:
    """The row of each scheduled token, and its position there."""
    if row_starts[-1] == len(step):  # all decode
        return step.rows, step.context_lens - 1
    done = step.context_lens - step.num_tokens
    positions = np.arange(row_starts[-1], dtype=np.int32) + np.repeat(done - row_starts[:-1], step.num_tokens)
    return np.repeat(step.rows, step.num_tokens), positions


def _starts(lengths: Ints) -> Ints:
    """Where runs of these lengths [R] begin when laid end to end, and where the last one ends: [R + 1]."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _page_ids(owners: Ints, num_pages: Ints, rows: Rows) -> Ints:
    """The first `num_pages` pages of each row, end to end."""
    width = int(num_pages.max())
    return rows.page_ids[owners, :width][np.arange(width) < num_pages[:, None]]


def _samples(step: Scheduled, rows: Rows) -> Samples:
    where = step.is_sampled.nonzero()[0].astype(np.int32)
    sampled = step.rows[where]
    positions = rows.n_total[sampled] + rows.n_drawn[sampled] - rows.n_prompt[sampled]
    is_banning = positions < rows.min_tokens[sampled]
    return Samples(
        where,
        seeds=rows.seeds[sampled],
        positions=positions,
        settings=rows.settings[sampled],
        is_plain=~(rows.is_edited[sampled] | is_banning),
        make=partial(_sample_row, step, where, positions),
    )


def _sample_row(step: Scheduled, where: Ints, positions: Ints, index: int) -> SampleRow:
    """May be asked when later steps were launched."""
    row, position = int(where[index]), int(positions[index])
    sequence = step.sequences[row]
    return SampleRow(
        row,
        sequence.params,
        sequence.seed,
        position,
        sequence.prompt_token_ids,
        sequence.output_token_ids[:position],
        sequence.stop_token_ids if position < sequence.params.min_tokens else (),
    )


def _carried(step: Scheduled, row_starts: Ints, rows: Rows) -> Carried:
    """A row that drew a token which nobody has read takes part with that token alone."""
    where = rows.n_drawn[step.rows].nonzero()[0]
    return Carried(row_starts[where], rows.last_sample[step.rows[where]]) if len(where) else NOTHING_CARRIED


def _page_copies(step: Scheduled, is_forked: Bools) -> list[tuple[int, int]]:
    """(source, target) of the choices that forked in this step: their last page is the copy."""
    forked = (step.sequences[index] for index in is_forked.nonzero()[0].tolist())
    return [
        (sequence.copy_source, int(sequence.page_ids[sequence.n_done // PAGE_SIZE]))
        for sequence in forked
        if sequence.copy_source is not None
    ]
