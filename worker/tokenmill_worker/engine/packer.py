"""From scheduled sequences to one packed batch: plain arrays, nothing kept. Knows no policy and no device."""

from collections.abc import Sequence as SequenceOf

import numpy as np

from tokenmill_worker.engine.batch import PAGE_SIZE, Ints, PackedBatch, SampleRow
from tokenmill_worker.engine.scheduler import Scheduled


def pack(rows: SequenceOf[Scheduled]) -> PackedBatch:
    """The scheduled tokens of all rows end to end, and nothing else. The rows' pages are already theirs."""
    done = np.array([sequence.n_done for sequence, _, _ in rows], dtype=np.int32)
    lengths = np.array([num_tokens for _, num_tokens, _ in rows], dtype=np.int32)
    context_lens = done + lengths
    num_pages = (context_lens + (PAGE_SIZE - 1)) // PAGE_SIZE
    row_starts, page_starts = _starts(lengths), _starts(num_pages)
    page_ids = np.concatenate([row.sequence.page_ids[:n] for row, n in zip(rows, num_pages.tolist(), strict=True)])
    positions = np.arange(row_starts[-1], dtype=np.int32) + np.repeat(done - row_starts[:-1], lengths)
    pages = page_ids[np.repeat(page_starts[:-1], lengths) + positions // PAGE_SIZE]
    return PackedBatch(
        token_ids=np.concatenate([s.token_ids[s.n_done : s.n_done + n] for s, n, _ in rows]),
        positions=positions,
        slots=pages * PAGE_SIZE + positions % PAGE_SIZE,
        row_starts=row_starts,
        context_lens=context_lens,
        page_ids=page_ids,
        page_starts=page_starts,
        samples=[_sample_row(index, row) for index, row in enumerate(rows) if row.is_sampled],
        page_copies=_page_copies(rows),
    )


def _starts(lengths: Ints) -> Ints:
    """Where runs of these lengths [R] begin when laid end to end, and where the last one ends: [R + 1]."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _sample_row(index: int, row: Scheduled) -> SampleRow:
    sequence = row.sequence
    position = sequence.n_total - sequence.n_prompt
    return SampleRow(
        index,
        sequence.params,
        sequence.seed,
        position,
        sequence.prompt_token_ids,
        sequence.output_token_ids,
        sequence.stop_token_ids if position < sequence.params.min_tokens else (),
    )


def _page_copies(rows: SequenceOf[Scheduled]) -> list[tuple[int, int]]:
    """(source, target) of the choices that forked in this step: their last page is the copy."""
    return [
        (row.sequence.copy_source, int(row.sequence.page_ids[row.sequence.n_done // PAGE_SIZE]))
        for row in rows
        if row.sequence.copy_source is not None
    ]
