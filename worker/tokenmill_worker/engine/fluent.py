"""Events of rows that say one token after the other, made for all of them at once. Knows no request and no end."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tokenmill_worker.engine.api import TokenEvent
from tokenmill_worker.engine.batch import Bools, Ids, Ints, Tokenizer
from tokenmill_worker.engine.rows import Rows
from tokenmill_worker.engine.scheduler import Scheduled


class FluentRows:
    """Tells tokens that have a text of their own and end nothing, of rows whose texts depend on nothing before.

    Which rows these are (`Rows.is_fluent`) is for their transcripts to say. A transcript takes 2 us a token after a
    step of the model, which leaves none of its objects in the caches; it hears nothing of what is told here.
    """

    def __init__(self, rows: Rows, tokenizer: Tokenizer, *, vocab_size: int) -> None:
        self._rows = rows
        pieces = [] if tokenizer.pieces is None else tokenizer.pieces.table[:vocab_size]
        self._texts = [piece if isinstance(piece, str) else "" for piece in pieces]  # by token
        self._is_whole: Bools = np.zeros(vocab_size, dtype=np.bool_)  # by token: its piece is a text
        self._is_whole[: len(pieces)] = [isinstance(piece, str) for piece in pieces]

    def beware_of(self, token_ids: Iterable[int]) -> None:
        """Some row ends at these tokens: from now on they are for the transcripts, of every row."""
        self._is_whole[[token_id for token_id in token_ids if token_id < len(self._is_whole)]] = False

    def can_tell(self, rows: Ints, token_ids: Ids) -> Bools:
        """Of which of these rows the token appended last can be told here."""
        own = self._rows
        can: Bools = own.is_fluent[rows] & self._is_whole[token_ids] & (own.n_total[rows] < own.max_total[rows])
        return can

    def events(self, step: Scheduled, where: NDArray[np.intp], token_ids: Ids) -> list[TokenEvent]:
        """One for each of the step's rows at these indexes, whose last token is this one.

        Column by column: nothing is in the caches, and short loops let the processor wait for several lines at once.
        """
        rows, tokens = step.rows[where], token_ids.tolist()
        offsets = self._rows.n_total[rows] - self._rows.n_prompt[rows] - 1
        sequences = [step.sequences[index] for index in where.tolist()]
        ids = [sequence.request_id for sequence in sequences]
        indexes = [sequence.index for sequence in sequences]
        texts = [self._texts[token_id] for token_id in tokens]
        return list(map(TokenEvent, ids, indexes, offsets.tolist(), zip(tokens), zip(texts)))
