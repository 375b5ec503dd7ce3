"""The running sequences as a struct of arrays: row r's numbers stand at index r. Knows no policy and no page's owner.

A step's host work is a few operations on whole arrays, however many rows take part. A free row keeps what it last had.
"""

import numpy as np

from tokenmill_worker.engine.api import SamplingParams
from tokenmill_worker.engine.batch import PAGE_SIZE, Bools, Floats, Ids, Ints, Seeds, settings_of
from tokenmill_worker.engine.pages import num_pages_for

_FIRST_TOKENS = 256  # width of the token table to begin with


class Rows:
    """Room for `num_rows` sequences. The tables' widths double when a longer one comes.

    n_prompt <= n_total known tokens, of which n_done have their KV stored in the row's first pages, of at most
    max_total. `n_remembered` full pages were told to the prefix cache. A step that was launched and not read yet counts
    as stored; what it draws are `n_drawn` more tokens that nobody knows, the last of them `last_sample` of that step.
    """

    def __init__(self, num_rows: int) -> None:
        self.is_taken: Bools = np.zeros(num_rows, dtype=np.bool_)
        self.is_forked: Bools = np.zeros(num_rows, dtype=np.bool_)  # its last page is to be copied from another row's
        self.is_choice: Bools = np.zeros(num_rows, dtype=np.bool_)  # one of several of its request
        self.is_fluent: Bools = np.zeros(num_rows, dtype=np.bool_)  # its texts need no transcript, as `fluent` has it
        self.is_penalized: Bools = np.zeros(num_rows, dtype=np.bool_)  # its draw depends on the tokens it drew before
        self.times_taken: Ints = np.zeros(num_rows, dtype=np.int32)  # tells a row's sequences apart
        self.n_prompt, self.n_total, self.n_done, self.max_total = _zeros(4, num_rows)
        self.num_pages, self.n_remembered, self.min_tokens = _zeros(3, num_rows)
        self.n_drawn, self.last_sample = _zeros(2, num_rows)
        self.token_ids: Ints = np.zeros((num_rows, _FIRST_TOKENS), dtype=np.int32)
        self.page_ids: Ints = np.zeros((num_rows, num_pages_for(_FIRST_TOKENS)), dtype=np.int32)
        self.seeds: Seeds = np.zeros(num_rows, dtype=np.uint64)
        self.settings: Floats = np.zeros((num_rows, 4))  # temperature, top_k, top_p, min_p
        self.is_edited: Bools = np.zeros(num_rows, dtype=np.bool_)  # its logits are changed, or told
        self._free = list(range(num_rows - 1, -1, -1))

    @property
    def num_wanted(self) -> Ints:
        """The last of max_total tokens ends its sequence, so it is never stored."""
        wanted: Ints = np.minimum(self.n_total + self.n_drawn, self.max_total - 1) - self.n_done
        return wanted

    def num_wanted_by(self, row: int) -> int:
        """The same for one row."""
        wanted = min(self.n_total[row] + self.n_drawn[row], self.max_total[row] - 1) - self.n_done[row]
        return int(wanted)

    def take(self, known: Ints, params: SamplingParams, *, n_prompt: int, max_total: int, seed: int) -> int:
        """A row for a sequence with these known tokens, nothing of which is stored yet."""
        row = self._free.pop()
        self._widen(max_total)
        self.is_taken[row] = True
        self.n_prompt[row], self.n_total[row], self.max_total[row] = n_prompt, len(known), max_total
        self.times_taken[row] += 1
        self.n_done[row] = self.num_pages[row] = self.n_remembered[row] = self.n_drawn[row] = 0
        self.is_forked[row], self.is_fluent[row], self.is_choice[row] = False, False, params.n > 1
        self.token_ids[row, : len(known)] = known
        self.seeds[row], self.min_tokens[row] = seed & 0xFFFF_FFFF_FFFF_FFFF, params.min_tokens
        self.settings[row], self.is_edited[row] = (
            settings_of(params),
            params.edits_logits or params.logprobs is not None,
        )
        self.is_penalized[row] = params.penalizes_tokens
        return row

    def give_back(self, row: int) -> None:
        self.is_taken[row] = False
        self._free.append(row)

    def append(self, rows: Ints, token_ids: Ints | Ids) -> None:
        """One more known token for each of these rows, the first of those it drew."""
        self.token_ids[rows, self.n_total[rows]] = token_ids
        self.n_total[rows] += 1
        self.n_drawn[rows] -= 1

    def add_pages(self, rows: Ints, pages: list[int]) -> None:
        """One more page for each of these rows."""
        self.page_ids[rows, self.num_pages[rows]] = pages
        self.num_pages[rows] += 1

    def num_missing_pages(self, rows: Ints, observed_output: float | None) -> int:
        """Pages that these rows are expected to take beyond those they have, when outputs are as long as observed."""
        max_total = self.max_total[rows]
        expected = max_total
        if observed_output is not None:
            by_output = np.maximum(self.n_prompt[rows] + int(observed_output), self.n_total[rows]) + PAGE_SIZE
            expected = np.minimum(max_total, by_output)
        missing = (expected + (PAGE_SIZE - 1)) // PAGE_SIZE - self.num_pages[rows]
        return int(np.maximum(missing, 0).sum())

    def check_integrity(self) -> None:
        """Raises AssertionError unless every row is taken or free."""
        free = sorted(self._free)
        assert free == np.flatnonzero(~self.is_taken).tolist(), "a row is lost, or taken and free"

    def _widen(self, num_tokens: int) -> None:
        if num_tokens > self.token_ids.shape[1]:
            self.token_ids = self._widened(self.token_ids, num_tokens, self.n_total)
            self.page_ids = self._widened(self.page_ids, num_pages_for(num_tokens), self.num_pages)

    def _widened(self, table: Ints, width: int, used: Ints) -> Ints:
        """The same table with at least `width` columns. Zeroed memory is not taken before it is written, so nothing is
        written but what the rows use."""
        wider = np.zeros((len(table), max(width, 2 * table.shape[1])), dtype=np.int32)
        for row in np.flatnonzero(self.is_taken).tolist():
            wider[row, : used[row]] = table[row, : used[row]]
        return wider


def _zeros(count: int, num_rows: int) -> list[Ints]:
    return [np.zeros(num_rows, dtype=np.int32) for _ in range(count)]
