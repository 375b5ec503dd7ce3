"""The load guard: refuses a model whose packed logits are not its plain ones. Knows the adapter, not serving.

Two sequences share packed rows, in chunks, over scattered pages, down to single decoded tokens; the same sequences go
through the model's own forward, with its own mask. Whatever leaks from one sequence into the other, or is lost between
chunks, shows as a difference. It is checked in float32, where a difference has no other explanation; in another dtype
the packed path must then be about as near to the float32 truth as the plain path is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.api import ModelError
from tokenmill_worker.engine.batch import PAGE_SIZE, PackedBatch
from tokenmill_worker.engine.kv_pool import KVPool
from tokenmill_worker.engine.memory import available_bytes
from tokenmill_worker.engine.parallel.sharding import local
from tokenmill_worker.engine.remembered import Known, Memory

LONG, SHORT = 70, 41  # tokens: the long one crosses two page borders, the short one a single one
WIDEST_WINDOW = 512  # tokens: a sliding window up to this is exceeded by the long sequence
TOLERANCE = 2e-3  # of the logits' spread, float32. Measured: 1e-6 for what is right, from 1e-2 for what is wrong
NOISE_FACTOR, NOISE_FLOOR = 4.0, 0.02  # how much farther than the plain forward the packed one may be from float32
COARSE_TOLERANCE = 0.25  # of the logits' spread, when the model has no room to be checked in float32


class Piece(NamedTuple):
    """Tokens [start, end) of sequence `sequence` run in one step."""

    sequence: int
    start: int
    end: int


class Truth(NamedTuple):
    """What the model's logits are, and how far from that the packed ones may be."""

    sequences: list[np.ndarray]
    logits: list[Tensor]
    dtype: torch.dtype
    allowed: float
    measure: Callable[[Sequence[Tensor], Sequence[Tensor]], float]
    is_exact: bool = True  # in float32

    def check(self, adapter: Adapter) -> None:
        """Raises ModelError when the packed logits differ. May be asked again, of the same model in another form."""
        packed = _packed(adapter, self.sequences, self.dtype)
        _compare(str(self.dtype), packed, self.logits, self.allowed, measure=self.measure)

    def first_step(self, adapter: Adapter) -> PackedBatch:
        """Two fresh prompts in one step, over a pool of its own that the adapter is bound to from now on."""
        tables = _bind_pages(adapter, self.sequences, self.dtype)
        return _batch(self.sequences, tables, [Piece(i, 0, len(own)) for i, own in enumerate(self.sequences)])


def check(adapter: Adapter, *, window: int | None, longest: int, memory: Memory | None = None) -> Truth:
    """Raises ModelError when packed and plain logits differ.

    `window` is the model's sliding window, if it has one; `longest` the longest sequence that it is exact for. What
    `memory` knows of this model's plain logits is not computed again.
    """
    sequences = _sequences(adapter.vocab_size, window, longest)
    known = memory.recall([len(sequence) for sequence in sequences]) if memory is not None else None
    truth = _truth(adapter, sequences) if known is None else _recalled(adapter, sequences, known)
    truth.check(adapter)
    if memory is not None and known is None and truth.is_exact:
        memory.keep(Known(truth.logits, truth.allowed))
    return truth


@torch.inference_mode()
def check_sharded(truth: Truth, whole: PreTrainedModel) -> None:
    """Raises ModelError when the plain logits of a sharded model, which are exact, are not those of the unsharded one.

    `whole`: that one, with eager attention and in float32.
    """
    inputs = [torch.from_numpy(sequence.astype(np.int64)).to(whole.device)[None] for sequence in truth.sequences]
    logits = [whole(input_ids=token_ids, use_cache=False).logits[0] for token_ids in inputs]
    difference = _largest_difference(truth.logits, logits)
    if difference <= TOLERANCE:  # also refuses NaN
        return
    raise ModelError(
        f"this model cannot be spread over several processes: its logits then differ by {difference:.1e} of their "
        f"spread (allowed {TOLERANCE:.1e}) from those of one process, so transformers' plan does not fit it; set "
        "tensor_parallel_size to 1"
    )


def _truth(adapter: Adapter, sequences: list[np.ndarray]) -> Truth:
    """The plain forward's logits; of a model in half precision those in float32, checked there already."""
    dtype, plain = adapter.kv_dtype, _plain(adapter, sequences)
    if dtype == torch.float32:
        return Truth(sequences, plain, dtype, TOLERANCE, _largest_difference)
    if not adapter.least_of_ranks(_fits_in_float32(adapter.model)):
        return Truth(sequences, plain, dtype, COARSE_TOLERANCE, _difference, is_exact=False)
    with _in_float32(adapter.model):
        exact = Truth(sequences, _plain(adapter, sequences), torch.float32, TOLERANCE, _largest_difference)
        exact.check(adapter)
    allowed = max(NOISE_FLOOR, NOISE_FACTOR * _difference(plain, exact.logits))
    return Truth(sequences, exact.logits, dtype, allowed, _difference)


def _recalled(adapter: Adapter, sequences: list[np.ndarray], known: Known) -> Truth:
    dtype = adapter.kv_dtype
    measure = _largest_difference if dtype == torch.float32 else _difference
    logits = [rows.to(adapter.device) for rows in known.logits]
    return Truth(sequences, logits, dtype, known.allowed, measure)


def _sequences(vocab_size: int, window: int | None, longest: int) -> list[np.ndarray]:
    num_long = LONG if window is None or window > WIDEST_WINDOW else max(LONG, window + 9)
    draw = np.random.default_rng(0)
    return [draw.integers(0, vocab_size, min(length, longest)).astype(np.int32) for length in (num_long, SHORT)]


def _steps(num_long: int, num_short: int) -> Iterator[list[Piece]]:
    """A first token all alone, then both in chunks, then chunk beside decode, both decoding, and one left over."""
    yield [Piece(0, 0, 1)]
    yield [Piece(0, 1, num_long // 2), Piece(1, 0, num_short - 4)]
    yield [Piece(1, num_short - 4, num_short - 3), Piece(0, num_long // 2, num_long - 4)]
    for done in (3, 2, 1):
        yield [Piece(0, num_long - done - 1, num_long - done), Piece(1, num_short - done, num_short - done + 1)]
    yield [Piece(0, num_long - 1, num_long)]


def _packed(adapter: Adapter, sequences: Sequence[np.ndarray], dtype: torch.dtype) -> list[Tensor]:
    """Every position's logits, per sequence, through the pages."""
    tables = _bind_pages(adapter, sequences, dtype)
    parts: list[list[Tensor]] = [[] for _ in sequences]
    for pieces in _steps(*map(len, sequences)):
        batch = _batch(sequences, tables, pieces)
        logits = adapter.logits(batch, np.arange(batch.num_tokens))
        rows = torch.split(logits, np.diff(batch.row_starts).tolist())
        for piece, row in zip(pieces, rows, strict=True):
            parts[piece.sequence].append(row)
    return [torch.cat(rows).float() for rows in parts]


def _bind_pages(adapter: Adapter, sequences: Sequence[np.ndarray], dtype: torch.dtype) -> list[np.ndarray]:
    """Page tables for all of them, in a pool that is large enough and bound to the adapter."""
    tables = _interleaved_pages([len(sequence) for sequence in sequences])
    num_pages = sum(map(len, tables))
    adapter.bind(KVPool(adapter.layers, num_pages=num_pages, dtype=dtype, device=adapter.device))
    return tables


def _interleaved_pages(lengths: Sequence[int]) -> list[np.ndarray]:
    """Page tables that are neither contiguous nor ascending: a wrong table must not work by luck."""
    counts = [-(-length // PAGE_SIZE) for length in lengths]
    order = sorted((index, sequence) for sequence, count in enumerate(counts) for index in range(count))
    pages = {place: page for page, place in enumerate(reversed(order))}
    return [np.array([pages[index, sequence] for index in range(count)]) for sequence, count in enumerate(counts)]


def _batch(sequences: Sequence[np.ndarray], tables: Sequence[np.ndarray], pieces: Sequence[Piece]) -> PackedBatch:
    positions = [np.arange(piece.start, piece.end) for piece in pieces]
    slots = [
        tables[piece.sequence][own // PAGE_SIZE] * PAGE_SIZE + own % PAGE_SIZE
        for piece, own in zip(pieces, positions, strict=True)
    ]
    pages = [tables[piece.sequence][: -(-piece.end // PAGE_SIZE)] for piece in pieces]
    return PackedBatch(
        token_ids=np.concatenate([sequences[piece.sequence][piece.start : piece.end] for piece in pieces]),
        positions=_int32(np.concatenate(positions)),
        slots=_int32(np.concatenate(slots)),
        row_starts=_starts([len(own) for own in positions]),
        context_lens=_int32([piece.end for piece in pieces]),
        page_ids=_int32(np.concatenate(pages)),
        page_starts=_starts([len(own) for own in pages]),
    )


def _int32(values: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.int32)


def _starts(lengths: Sequence[int]) -> np.ndarray:
    return _int32(np.cumsum([0, *lengths]))


def _plain(adapter: Adapter, sequences: Sequence[np.ndarray]) -> list[Tensor]:
    return [adapter.plain_logits(sequence.tolist()).float() for sequence in sequences]


def _largest_difference(ours: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """In units of the logits' spread over the vocabulary, so that a model's temperature does not matter."""
    worst = max(float((a - b).abs().max()) for a, b in zip(ours, truth, strict=True))
    return worst / _spread(truth)


def _difference(ours: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Root mean square, in units of the logits' spread: steady where the largest difference is luck."""
    square = sum(float((a - b).square().sum()) for a, b in zip(ours, truth, strict=True))
    return float((square / sum(a.numel() for a in ours)) ** 0.5) / _spread(truth)


def _spread(logits: Sequence[Tensor]) -> float:
    return max(float(torch.cat(list(logits)).std(-1).mean()), 1e-6)


def _compare(
    dtype: str,
    ours: Sequence[Tensor],
    truth: Sequence[Tensor],
    allowed: float,
    *,
    measure: Callable[[Sequence[Tensor], Sequence[Tensor]], float],
) -> None:
    difference = measure(ours, truth)
    if difference <= allowed:  # also refuses NaN
        return
    raise ModelError(
        "this model cannot run in a packed row: its logits there differ from its own plain forward by "
        f"{difference:.1e} of their spread ({dtype}, allowed {allowed:.1e}), so something in it looks beyond "
        "its own sequence, or attends in a way that the packed attention does not know"
    )


def _fits_in_float32(model: PreTrainedModel) -> bool:
    parameters = list(model.parameters())
    if not all(parameter.is_floating_point() for parameter in parameters):
        return False  # quantized weights mean nothing without their scales
    return 4 * sum(local(parameter).numel() for parameter in parameters) < available_bytes(model.device) // 2


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """The very same weights, held in float32; the originals are kept aside and put back, bit by bit."""
    originals = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, data in originals:
            parameter.data = data.float()
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data
