"""A deterministic fake language model on numpy: the next token is a hash of the prefix. Knows no weights and no torch.

Everything around it is real, so queue tests and benchmarks run the engine itself. Its memory is a rolling hash per KV
slot, written to and read back through the page table: a wrong page, a lost copy or a stale prefix changes the output.
Tokens are bytes. The text has characters of one to four bytes, so streams split them often; it never ends by itself.

Options as in a URL, `echo?step_ms=20&abort_on=poison`:
`step_ms`        how long a step takes, with the host's work for the one before beside it
`max_model_len`  its limit
`fail_on`        a row whose prompt contains this text raises instead of drawing a token
`abort_on`       ... ends the process on the spot, as a fault in native code does
"""

import os
import time
from collections.abc import Callable, Sequence
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from tokenmill_worker.engine.api import EngineConfig, Logprobs, ModelError, RowError, SamplingParams
from tokenmill_worker.engine.batch import (
    PAGE_SIZE,
    Draws,
    Ints,
    Loaded,
    PackedBatch,
    Sampled,
    SampleRow,
    Samples,
    settings_of,
)
from tokenmill_worker.engine.echo_row import (
    FIRST,
    LENGTH,
    LIKELY,
    NEXT,
    ROUNDING,
    UNLIKELY,
    anywhere,
    draw,
    likely_logits,
)
from tokenmill_worker.engine.pages import num_pages_for
from tokenmill_worker.engine.token_pieces import TokenPieces
from tokenmill_worker.engine.uniform import mix64s, uniform, uniforms

VOCAB_SIZE = 256
_MAX_MODEL_LEN = 8192
_KV_CACHE_TOKENS = 65536

Words = NDArray[np.uint64]
Indices = NDArray[np.int64]
Floats = NDArray[np.float64]

_FIRST, _NEXT = np.frombuffer(FIRST, np.uint8), np.frombuffer(NEXT, np.uint8)
_LENGTH = np.frombuffer(LENGTH, np.uint8).astype(np.int64)  # of a character, by its first byte; 0: a continuation byte
_NUM_CANDIDATES = len(LIKELY)
_STRIDES = np.arange(1, _NUM_CANDIDATES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
_LIKELY = np.array(LIKELY)
_UNLIKELY = (UNLIKELY - np.arange(VOCAB_SIZE) / VOCAB_SIZE)[None]  # [1, 256]
_FEW = 8  # rows of a step: up to here they are cheaper one by one
_UNFILTERED = list(settings_of(SamplingParams()))[1:]
_COLDEST = 1e-3  # below, all probabilities but one may come out as 0, or worse
_LATER = np.triu(np.ones((_NUM_CANDIDATES, _NUM_CANDIDATES), dtype=np.bool_), 1)  # [i, j]: j comes after i
_BACK = np.arange(3)  # how far behind the last token the first byte of its character may stand


class EchoTokenizer:
    """UTF-8 bytes are the tokens."""

    vocab_size = VOCAB_SIZE
    eos_token_ids: frozenset[int] = frozenset()
    has_chat_template = True
    pieces: TokenPieces | None = TokenPieces(
        [chr(byte) if byte < 0x80 else bytes([byte]) for byte in range(VOCAB_SIZE)]
    )

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> list[int]:
        turns = "".join(f"<{message['role']}>: {message['content']}\n" for message in messages)
        return self.encode(f"{turns}<assistant>: ")

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode("utf-8", "replace")


class EchoRunner:
    """Runs packed batches on a pool of hashes. The module says what the options do."""

    vocab_size = VOCAB_SIZE
    device = "cpu"
    fingerprint = "echo-2"

    def __init__(
        self,
        *,
        num_pages: int,
        max_model_len: int = _MAX_MODEL_LEN,
        step_s: float = 0.0,
        fail_on: str = "",
        abort_on: str = "",
    ) -> None:
        self.num_pages = num_pages
        self.max_model_len = max_model_len
        self._step_s = step_s
        self._ended_s = float("-inf")
        self._fail_on, self._abort_on = fail_on.encode(), abort_on.encode()
        self._state: Words = np.zeros(num_pages * PAGE_SIZE, dtype=np.uint64)  # hash of the tokens up to this one
        self._token = np.zeros(num_pages * PAGE_SIZE, dtype=np.uint8)

    def run(self, batch: PackedBatch) -> Sequence[Sampled]:
        started_s = time.monotonic()
        sampled = self._run(batch)
        if self._step_s:
            self._pace(started_s)
        return sampled

    def _pace(self, started_s: float) -> None:
        """A step ends `step_s` after the one before, as a device's would that works beside the host; or after idling,
        `step_s` after its own start.
        """
        is_next = started_s - self._ended_s < self._step_s
        self._ended_s = (self._ended_s if is_next else started_s) + self._step_s
        time.sleep(max(0.0, self._ended_s - time.monotonic()))

    def _run(self, batch: PackedBatch) -> Sequence[Sampled]:
        self._copy_pages(batch)
        self._store(batch)
        if not batch.samples:
            return []
        if _has_prompt_with(self._abort_on, batch):
            os.abort()
        if _has_prompt_with(self._fail_on, batch):
            raise RuntimeError("the echo model was asked to fail on this prompt")
        samples = Samples.of(batch.samples)
        if len(samples) <= _FEW and (drawn := self._draw_singly(batch, samples)) is not None:
            return drawn
        byte, logits = self._likely(batch, samples.rows)
        if _is_simple(samples) and (tokens := _draw_likely(byte, logits, samples)) is not None:
            return Draws(tokens)
        return sample(_spread(byte, logits), list(samples))  # each row is made when it is asked for

    def _draw_singly(self, batch: PackedBatch, samples: Samples) -> Draws | None:
        """Without an array of all logits; None: one of them takes it."""
        drawn = []
        columns = (samples.rows, samples.seeds, samples.positions, samples.settings, samples.is_plain)
        for row, seed, position, settings, is_plain in zip(*(column.tolist() for column in columns), strict=True):
            temperature = settings[0]
            if not is_plain or settings[1:] != _UNFILTERED or 0.0 < temperature < _COLDEST:
                return None
            token = draw(self._likely_logits(batch, row), temperature, uniform(seed, position))
            if token is None:
                return None
            drawn.append(token)
        return Draws(np.array(drawn, dtype=np.int64))

    def _likely_logits(self, batch: PackedBatch, row: int) -> dict[int, float]:
        last, start = int(batch.context_lens[row]) - 1, int(batch.page_starts[row])

        def slot(position: int) -> int:
            return int(batch.page_ids[start + position // PAGE_SIZE]) * PAGE_SIZE + position % PAGE_SIZE

        tokens = [int(self._token[slot(position)]) for position in range(last, max(last - 3, -1), -1)]
        return likely_logits(int(self._state[slot(last)]), int(self._state[slot(anywhere(last))]), tokens)

    def _copy_pages(self, batch: PackedBatch) -> None:
        for source, target in batch.page_copies:
            for pool in (self._state, self._token):
                pages = pool.reshape(-1, PAGE_SIZE)
                pages[target] = pages[source]

    def _store(self, batch: PackedBatch) -> None:
        """state[i] = state[i - 1] + hash(token i, i), all rows at once: a sum over the run, less what is not theirs."""
        hashes = mix64s((batch.token_ids.astype(np.uint64) << np.uint64(32)) + batch.positions.astype(np.uint64))
        sums = hashes.cumsum()
        self._token[batch.slots] = batch.token_ids
        if batch.num_rows == 1:
            self._state[batch.slots] = sums + self._state_before(batch)
            return
        rows = np.arange(batch.num_rows)
        starts, lengths = batch.row_starts[:-1], np.diff(batch.row_starts)
        first = batch.positions[starts]
        before = np.where(first > 0, self._state[self._slots(batch, rows, np.maximum(first - 1, 0))], np.uint64(0))
        self._state[batch.slots] = sums + np.repeat(before - (sums[starts] - hashes[starts]), lengths)

    def _state_before(self, batch: PackedBatch) -> np.uint64:
        """Of the only row, at the token before its first one here."""
        last = int(batch.positions[0]) - 1
        if last < 0:
            return np.uint64(0)
        before: np.uint64 = self._state[batch.page_ids[last // PAGE_SIZE] * PAGE_SIZE + last % PAGE_SIZE]
        return before

    def _slots(self, batch: PackedBatch, rows: Indices, positions: Indices) -> Indices:
        """Where the row's pages hold these positions."""
        pages: Indices = batch.page_ids[batch.page_starts[rows] + positions // PAGE_SIZE].astype(np.int64)
        slots: Indices = pages * PAGE_SIZE + positions % PAGE_SIZE
        return slots

    def _likely(self, batch: PackedBatch, rows: Ints) -> tuple[NDArray[np.uint8], Floats]:
        """Eight likely bytes [S, 8] that continue valid UTF-8, and falling logits: of equal bytes the last counts."""
        last = batch.context_lens[rows].astype(np.int64) - 1
        anywhere = (mix64s(last.astype(np.uint64)) % (last + 1).astype(np.uint64)).astype(np.int64)
        behind = last[:, None] - _BACK  # [S, 3]
        slots = self._slots(
            batch, rows[:, None].astype(np.int64), np.column_stack([anywhere, np.maximum(behind, 0)])
        )  # [S, 4]
        word = mix64s(self._state[slots[:, 1]] ^ mix64s(self._state[slots[:, 0]]))  # every page is read in time
        words = mix64s(word[:, None] + _STRIDES)  # [S, 8]
        is_inside = _is_inside_character(self._token[slots[:, 1:]], behind >= 0)[:, None]
        byte = np.where(is_inside, _NEXT[words % np.uint64(len(_NEXT))], _FIRST[words % np.uint64(len(_FIRST))])
        logits: Floats = _LIKELY + (words >> np.uint64(40)) * 2.0**-25
        return byte, logits


def _spread(byte: NDArray[np.uint8], likely: Floats) -> Floats:
    """All logits [S, 256]: but for the likely bytes they are far below."""
    logits: Floats = _UNLIKELY.repeat(len(byte), axis=0)
    logits[np.arange(len(byte))[:, None], byte] = likely
    return logits


def _is_simple(samples: Samples) -> bool:
    """Does nothing but the temperature change what they draw from?"""
    temperature = samples.settings[:, 0]
    is_usual = (temperature == 0.0) | (temperature >= _COLDEST)
    return bool(samples.is_plain.all() and is_usual.all() and (samples.settings[:, 1:] == _UNFILTERED).all())


def _draw_likely(byte: NDArray[np.uint8], logits: Floats, samples: Samples) -> Indices | None:
    """What all 256 logits would give, from eight of them; None: for one row it takes all to tell. As echo_row.draw."""
    is_again = (byte[:, :, None] == byte[:, None, :]) & _LATER
    logits = np.where(is_again.any(axis=2), -np.inf, logits)
    peak = logits.max(axis=1, keepdims=True)
    scale = np.where(samples.is_greedy, 1.0, samples.settings[:, 0])[:, None]
    weights = np.exp((logits - peak) / scale)
    up_to = weights.cumsum(axis=1)
    total = up_to[:, -1]
    u = np.where(samples.is_greedy, 0.0, uniforms(samples.seeds, samples.positions))
    rest = VOCAB_SIZE * np.exp((UNLIKELY - peak[:, 0]) / scale[:, 0])  # at most
    low, high = (u - ROUNDING) * total, u * (total + rest) + ROUNDING * total
    chosen: Indices = (up_to <= high[:, None]).sum(axis=1)
    before = np.where(chosen > 0, up_to[np.arange(len(u)), chosen - 1], 0.0)
    if ((chosen == len(LIKELY)) | (before > 0.0) & (low <= before)).any():
        return None
    return byte[np.arange(len(u)), chosen].astype(np.int64)


def _is_inside_character(tokens: NDArray[np.uint8], is_there: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Do the last tokens [S, 3], from the last one back, begin a character without ending it?"""
    length = _LENGTH[tokens]
    is_inside = is_there & (length > _BACK + 1)
    is_inside[:, 1:] &= np.logical_and.accumulate(length == 0, axis=1)[:, :2]  # only continuation bytes behind it
    is_any: NDArray[np.bool_] = np.logical_or.reduce(is_inside, axis=1)
    return is_any


def _has_prompt_with(text: bytes, batch: PackedBatch) -> bool:
    return bool(text) and any(text in row.prompt_token_ids.astype(np.uint8).tobytes() for row in batch.samples)


def sample(logits: Floats, rows: Sequence[SampleRow]) -> list[Sampled]:
    """One draw per row of [S, V] logits, by one uniform each; a row with a non-finite logit draws nothing."""
    is_finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(logits), axis=1)
    logits = np.where(is_finite[:, None], logits, 0.0)
    logprobs = _raw_logprobs(logits, rows)
    for index, row in enumerate(rows):
        _adjust(logits[index], row)
    tokens = _draw(logits, rows)
    fault = Sampled(error=RowError("non_finite_logits", "the model gave a logit that is not a number"))
    return [
        Sampled(token, logprobs(index, token)) if is_good else fault
        for index, (token, is_good) in enumerate(zip(tokens.tolist(), is_finite.tolist(), strict=True))
    ]


def _raw_logprobs(logits: Floats, rows: Sequence[SampleRow]) -> Callable[[int, int], Logprobs | None]:
    """What a row says of the token it drew: by the distribution before anything is adjusted, if it was asked for."""
    if all(row.params.logprobs is None for row in rows):
        return lambda index, token_id: None
    raw = logits - _logsumexp(logits)
    return lambda index, token_id: _logprobs(raw[index], token_id, rows[index].params.logprobs)


def _adjust(logits: Floats, row: SampleRow) -> None:
    """Bias, penalties and bans of one row, in place on [V]."""
    params = row.params
    for token_id, bias in params.logit_bias.items():
        logits[token_id] += bias
    if params.repetition_penalty != 1.0:
        seen = np.union1d(row.prompt_token_ids, row.output_token_ids)
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        counts = np.bincount(row.output_token_ids, minlength=len(logits))
        logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    if row.banned_token_ids:
        logits[list(row.banned_token_ids)] = -np.inf


def _draw(logits: Floats, rows: Sequence[SampleRow]) -> Indices:
    """The first token, from the likeliest on (equals: by lower id), at which the cumulative probability exceeds u."""
    tokens: Indices = logits.argmax(axis=1)
    drawn = [index for index, row in enumerate(rows) if not row.params.is_greedy]
    if not drawn:
        return tokens
    params = [rows[index].params for index in drawn]
    order = np.argsort(-logits[drawn], axis=1, kind="stable")
    scaled = logits[np.array(drawn)[:, None], order] / _column([p.temperature for p in params])
    probabilities = _kept(np.exp(scaled - _logsumexp(scaled)), params)
    cumulative = np.cumsum(probabilities, axis=1)
    u = uniforms([rows[index].seed for index in drawn], [rows[index].position for index in drawn])
    chosen = (cumulative <= u[:, None] * cumulative[:, -1:]).sum(axis=1)
    tokens[drawn] = order[np.arange(len(drawn)), np.minimum(chosen, (probabilities > 0).sum(axis=1) - 1)]
    return tokens


def _kept(probabilities: Floats, params: Sequence[SamplingParams]) -> Floats:
    """Zero for what top_k, then top_p, then min_p drop of [S, V], sorted from the likeliest on; the first stays."""
    if not any(p.top_k or p.top_p < 1.0 or p.min_p for p in params):
        return probabilities
    rank = np.arange(probabilities.shape[1])
    kept = np.where(rank < _column([p.top_k or np.inf for p in params]), probabilities, 0.0)
    before = np.cumsum(kept, axis=1) - kept
    share = _column([p.top_p if p.top_p < 1.0 else np.inf for p in params])  # 1 keeps all, rounding or not
    keep = before < share * kept.sum(axis=1, keepdims=True)
    keep &= kept >= _column([p.min_p for p in params]) * kept[:, :1]
    return np.where(keep | (rank == 0), kept, 0.0)


def _logprobs(raw: Floats, token_id: int, num_top: int | None) -> Logprobs | None:
    if num_top is None:
        return None
    top = np.argsort(-raw, kind="stable")[:num_top].tolist()
    return Logprobs(float(raw[token_id]), tuple((token, float(raw[token])) for token in top))


def _logsumexp(logits: Floats) -> Floats:
    top = logits.max(axis=1, keepdims=True)
    total: Floats = top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    return total


def _column(values: Sequence[float]) -> Floats:
    return np.array(values, dtype=np.float64)[:, None]


def load(config: EngineConfig) -> Loaded:
    """`echo`, with options. Raises ModelError for options that are unknown or wrong."""
    if config.quantization is not None:
        raise ModelError(f"quantization {config.quantization} means nothing for the echo model: leave it out")
    if config.tensor_parallel_size > 1:
        raise ModelError("the echo model has nothing to share out: set tensor_parallel_size to 1")
    options = dict(parse_qsl(config.model.partition("?")[2]))
    try:
        step_ms = float(options.pop("step_ms", 0.0))
        max_model_len = int(options.pop("max_model_len", _MAX_MODEL_LEN))
    except ValueError as error:
        raise ModelError(f"{config.model}: {error}") from error
    if options.keys() - {"fail_on", "abort_on"} or step_ms < 0 or max_model_len < 2:
        raise ModelError(
            f"{config.model}: the echo model has the options step_ms >= 0, max_model_len >= 2, fail_on and abort_on"
        )
    runner = EchoRunner(
        num_pages=num_pages_for(config.kv_cache_tokens or max(max_model_len, _KV_CACHE_TOKENS)),
        max_model_len=max_model_len,
        step_s=step_ms / 1000,
        **options,
    )
    return Loaded(runner, EchoTokenizer(), {})
