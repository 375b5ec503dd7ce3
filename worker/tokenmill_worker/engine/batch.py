"""One step's work, packed: the scheduled tokens of all rows in one run of T, and nothing else. Knows no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from tokenmill_worker.engine.api import Logprobs, RowError, SamplingParams
from tokenmill_worker.engine.token_pieces import TokenPieces

PAGE_SIZE = 32  # tokens: one contiguous tile per page and head, and the grain of the prefix cache

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Seeds = NDArray[np.uint64]


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


def settings_of(params: SamplingParams) -> tuple[float, float, float, float]:
    """What a draw needs of the parameters: temperature, top_k (infinite: all), top_p, min_p."""
    return params.temperature, params.top_k or np.inf, params.top_p, params.min_p


class Samples(Sequence[SampleRow]):
    """A step's SampleRows as a struct of arrays; a SampleRow itself is made when somebody asks for it.

    `is_plain`: nothing changes the row's logits before the draw, and nobody asked for logprobs.
    """

    def __init__(
        self,
        rows: Ints,  # [S] of the batch
        *,
        seeds: Seeds,  # [S]
        positions: Ints,  # [S]
        settings: Floats,  # [S, 4] settings_of
        is_plain: Bools,  # [S]
        make: Callable[[int], SampleRow],  # the SampleRow at an index
    ) -> None:
        self.rows, self.seeds, self.positions = rows, seeds, positions
        self.settings, self.is_plain = settings, is_plain
        self._make = make

    @classmethod
    def of(cls, rows: Sequence[SampleRow]) -> "Samples":
        """The same of rows that were made one by one."""
        if isinstance(rows, Samples):
            return rows
        return cls(
            np.array([row.row for row in rows], dtype=np.int32),
            seeds=np.array([row.seed & 0xFFFF_FFFF_FFFF_FFFF for row in rows], dtype=np.uint64),
            positions=np.array([row.position for row in rows], dtype=np.int32),
            settings=np.array([settings_of(row.params) for row in rows]).reshape(-1, 4),
            is_plain=np.array([_is_plain(row) for row in rows], dtype=np.bool_),
            make=rows.__getitem__,
        )

    def take(self, where: NDArray[np.intp]) -> "Samples":
        """Those at these indexes."""
        return Samples(
            self.rows[where],
            seeds=self.seeds[where],
            positions=self.positions[where],
            settings=self.settings[where],
            is_plain=self.is_plain[where],
            make=lambda index: self._make(int(where[index])),
        )

    @property
    def is_greedy(self) -> Bools:
        greedy: Bools = self.settings[:, 0] == 0.0
        return greedy

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> SampleRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[SampleRow]: ...

    def __getitem__(self, index: int | slice) -> SampleRow | list[SampleRow]:
        if isinstance(index, slice):
            return [self._make(one) for one in range(*index.indices(len(self)))]
        return self._make(range(len(self))[index])


def _is_plain(row: SampleRow) -> bool:
    return not (row.params.edits_logits or row.params.logprobs is not None or row.banned_token_ids)


class Carried(NamedTuple):
    """Tokens that the host does not know: `tokens[i]` of the run is what sample `samples[i]` of the last step drew."""

    tokens: Ints
    samples: Ints

    def __bool__(self) -> bool:
        return len(self.tokens) > 0


NOTHING_CARRIED = Carried(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32))


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """R rows of ragged length in one run of T tokens, no padding. Row r owns tokens [row_starts[r], row_starts[r + 1]).

    Its pages are page_ids[page_starts[r]:page_starts[r + 1]]: they hold its first context_lens[r] tokens, those of
    this step included, so a row attends to [0, context_lens[r]) causally. `slots` are page * PAGE_SIZE + offset.
    `page_copies` (source, target) are done before anything is written. Of what is `carried`, token_ids say nothing.
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
    carried: Carried = NOTHING_CARRIED

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


@dataclass(frozen=True, slots=True)
class Draws(Sequence[Sampled]):
    """A step's Sampled as a struct: most rows drew a token and have nothing else to tell."""

    token_ids: Ids  # [S]; of a row with an error, anything
    logprobs: Mapping[int, Logprobs] = field(default_factory=dict)
    errors: Mapping[int, RowError] = field(default_factory=dict)
    redrawn: frozenset[int] = frozenset()  # the next step was given another token for these, and is wrong about them

    @classmethod
    def of(cls, drawn: Sequence[Sampled]) -> "Draws":
        """The same of what was drawn row by row."""
        if isinstance(drawn, Draws):
            return drawn
        return cls(
            np.array([one.token_id for one in drawn], dtype=np.int64),
            {index: one.logprobs for index, one in enumerate(drawn) if one.logprobs is not None},
            {index: one.error for index, one in enumerate(drawn) if one.error is not None},
        )

    def __len__(self) -> int:
        return len(self.token_ids)

    @overload
    def __getitem__(self, index: int) -> Sampled: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sampled]: ...

    def __getitem__(self, index: int | slice) -> Sampled | list[Sampled]:
        where = range(len(self))[index]
        return self._at(where) if isinstance(where, int) else [self._at(one) for one in where]

    def _at(self, index: int) -> Sampled:
        if index in self.errors:
            return Sampled(error=self.errors[index])
        return Sampled(int(self.token_ids[index]), self.logprobs.get(index))


class Runner(Protocol):
    """Runs packed batches on a device. The one thing that differs between a real model and the echo model."""

    vocab_size: int
    max_model_len: int
    num_pages: int
    device: str  # where it runs, as torch names devices
    fingerprint: str  # of weights + tokenizer + template: equal strings give equal continuations

    def run(self, batch: PackedBatch) -> Sequence[Sampled]:
        """One Sampled per batch.samples, in order; `Draws` is the cheap way. Raises only when the whole step failed."""
        ...


class Launch(Protocol):
    """A step that runs."""

    def read(self) -> Draws:
        """Waits for it. May be asked again."""
        ...


class Launcher(Protocol):
    """Starts steps without waiting for them: what the overlapped loop needs of a runner."""

    def launch(self, batch: PackedBatch) -> Launch:
        """What is carried comes from the step launched before. Raises as Runner.run does; nothing is launched then."""
        ...


class Tokenizer(Protocol):
    """Text in, ids out, and back. Thread-safe."""

    vocab_size: int
    eos_token_ids: frozenset[int]
    has_chat_template: bool
    pieces: TokenPieces | None  # None: text has to be asked of `decode`

    def encode(self, text: str) -> list[int]:
        """With the model's own special tokens (BOS and the like)."""
        ...

    def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ends where the assistant's answer begins."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Special tokens are left out. An incomplete UTF-8 sequence gives U+FFFD."""
        ...


def _nothing_to_close() -> None:
    """Most runners end with their process."""


def _no_threads(num_threads: int) -> None:
    """The model's operations have none to set."""


class Loaded(NamedTuple):
    """What a model name turns into. `default_params` are the model's own sampling defaults (its generation_config)."""

    runner: Runner
    tokenizer: Tokenizer
    default_params: Mapping[str, float | int]
    computing: Mapping[str, str] = MappingProxyType({})  # how, for people: attention_backend and the like
    close: Callable[[], None] = _nothing_to_close
    set_num_threads: Callable[[int], None] = _no_threads
