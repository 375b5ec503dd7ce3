"""One step's work, packed: the scheduled tokens of all rows in one run of T, and nothing else. Knows no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenmill_worker.engine.api import Logprobs, RowError, SamplingParams

PAGE_SIZE = 32  # tokens: one contiguous tile per page and head, and the grain of the prefix cache

Ints = NDArray[np.int32]


class SampleRow(NamedTuple):
    """A row that reached the end of its known tokens and draws the next one.

    `row` indexes the batch's rows; `position` counts the choice's output tokens before this draw, so that
    (`seed`, `position`) alone decides it. The id arrays are views: read, never keep or write.
    `banned_token_ids` must not be drawn: the tokens that would stop the choice before its min_tokens.
    """

    row: int
    params: SamplingParams
    seed: int
    position: int
    prompt_token_ids: Ints  # [n_prompt]
    output_token_ids: Ints  # [position]
    banned_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """R rows of ragged length in one run of T tokens, no padding. Row r owns tokens [row_starts[r], row_starts[r + 1]).

    Its pages are page_ids[page_starts[r]:page_starts[r + 1]]: they hold its first context_lens[r] tokens, those of
    this step included, so a row attends to [0, context_lens[r]) causally. `slots` are page * PAGE_SIZE + offset.
    `page_copies` (source, target) are done before anything is written.
    """

    token_ids: Ints  # [T]
    positions: Ints  # [T]
    slots: Ints  # [T]
    row_starts: Ints  # [R + 1]
    context_lens: Ints  # [R]
    page_ids: Ints  # [sum of pages]
    page_starts: Ints  # [R + 1]
    samples: Sequence[SampleRow] = ()
    page_copies: Sequence[tuple[int, int]] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_rows(self) -> int:
        return len(self.context_lens)


class Sampled(NamedTuple):
    """What one SampleRow drew: a token, or the reason why it could not."""

    token_id: int = 0
    logprobs: Logprobs | None = None
    error: RowError | None = None


class Runner(Protocol):
    """Runs packed batches on a device. The one thing that differs between a real model and the echo model."""

    vocab_size: int
    max_model_len: int
    num_pages: int
    device: str  # where it runs, as torch names devices
    fingerprint: str  # of weights + tokenizer + template: equal strings give equal continuations

    def run(self, batch: PackedBatch) -> list[Sampled]:
        """One Sampled per batch.samples, in order. Raises only when the whole step failed."""
        ...


class Tokenizer(Protocol):
    """Text in, ids out, and back. Thread-safe."""

    vocab_size: int
    eos_token_ids: frozenset[int]
    has_chat_template: bool

    def encode(self, text: str) -> list[int]:
        """With the model's own special tokens (BOS and the like)."""
        ...

    def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ends where the assistant's answer begins."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Special tokens are left out. An incomplete UTF-8 sequence gives U+FFFD."""
        ...


class Loaded(NamedTuple):
    """What a model name turns into. `default_params` are the model's own sampling defaults (its generation_config)."""

    runner: Runner
    tokenizer: Tokenizer
    default_params: Mapping[str, float | int]
