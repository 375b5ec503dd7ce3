"""Which sequences get how many tokens of the next step. No phases: stored tokens chase known tokens. Knows no text."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import starmap
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from tokenmill_worker.engine.batch import PAGE_SIZE, Bools, Ints
from tokenmill_worker.engine.pacer import Limits, Load
from tokenmill_worker.engine.pages import Pages, num_pages_for
from tokenmill_worker.engine.rows import Rows
from tokenmill_worker.engine.sequence import Sequence

_by_rank = attrgetter("rank")


class ScheduledRow(NamedTuple):
    """`num_tokens` of `sequence`, from its n_done on, take part in a step.

    `is_sampled`: they reach the end of the known tokens, so the step draws the next one.
    """

    sequence: Sequence
    num_tokens: int
    is_sampled: bool


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A step's rows in the order of packing, side by side in arrays; iterating over it makes one ScheduledRow each."""

    rows: Ints  # [S] of Rows
    num_tokens: Ints  # [S]
    context_lens: Ints  # [S] tokens stored when the step has run
    is_sampled: Bools  # [S]
    times_taken: Ints  # [S] of the rows, when they were scheduled
    sequences: list[Sequence]

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[ScheduledRow]:
        columns = zip(self.sequences, self.num_tokens.tolist(), self.is_sampled.tolist(), strict=True)
        return starmap(ScheduledRow, columns)

    def only(self, indexes: SequenceOf[int]) -> "Scheduled":
        """Some of the rows, as a step of their own."""
        where = np.asarray(indexes, dtype=np.intp)
        return Scheduled(
            self.rows[where],
            self.num_tokens[where],
            self.context_lens[where],
            self.is_sampled[where],
            self.times_taken[where],
            [self.sequences[index] for index in indexes],
        )


class _Step:
    """The step being put together: who is in it, and how much of the token budget is left."""

    def __init__(self, limits: Limits) -> None:
        self.budget = limits.num_tokens
        self.max_num_rows = limits.num_rows
        self.num_preempted = 0
        self.num_promised: int | None = None  # pages that running rows are expected to take yet; None: not counted
        self.decoding: Ints = np.zeros(0, dtype=np.int32)  # rows with a token each, packed first
        self.num_tokens: dict[int, int] = {}  # of the other rows, in the order of packing

    @property
    def is_empty(self) -> bool:
        return not len(self.decoding) and not self.num_tokens

    def add_decoding(self, rows: Ints) -> None:
        self.decoding = rows
        self.budget -= len(rows)

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        self.num_tokens[sequence.row] = num_tokens
        self.budget -= num_tokens

    def remove(self, sequence: Sequence) -> None:
        self.num_preempted += 1
        self.num_promised = None
        left = self.decoding[self.decoding != sequence.row]
        self.budget += self.num_tokens.pop(sequence.row, 0) + len(self.decoding) - len(left)
        self.decoding = left


class Scheduler:
    """Sequences wait or run; both lists are kept in rank order (priority, then arrival, then choice). What a running
    one knows and has stored is a row of `rows`.

    Every step serves, in this order, decoding rows, running prefills and, every `interval` steps, newcomers. When pages
    run out, the last in rank gives its pages back and waits again with all its tokens (preemption by recompute), so the
    first in rank always gets on: a sequence that fits the pool alone always finishes.
    """

    def __init__(self, pages: Pages, *, max_num_seqs: int, max_num_batched_tokens: int, interval: int = 1) -> None:
        self.pages = pages
        self._interval = interval
        self._num_steps_shut = 0  # since newcomers were let in
        self.max_num_batched_tokens = max_num_batched_tokens
        # No more rows than tokens in a step: a decoding row is never left out of one.
        self.max_num_rows = min(max_num_seqs, max_num_batched_tokens)
        self.rows = Rows(self.max_num_rows)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._by_row: list[Sequence | None] = [None] * self.max_num_rows
        self._order: Ints | None = None  # rows of `running`; None: it changed
        self.num_prefill_tokens = self.num_decode_tokens = 0
        self.num_preemptions = 0
        self.num_cached_tokens = 0  # tokens that the prefix cache saved, over all admissions
        self._observed_output: float | None = None  # tokens, exponentially weighted mean of finished outputs

    def reconfigure(self, *, max_num_seqs: int, max_num_batched_tokens: int, interval: int) -> None:
        """From the next step on, within the rows that there are. The last in rank wait where there are too many."""
        self.max_num_batched_tokens, self._interval = max_num_batched_tokens, interval
        self.max_num_rows = min(max_num_seqs, max_num_batched_tokens, len(self._by_row))
        while len(self.running) > self.max_num_rows:
            self.preempt(self.running[-1])

    # In and out

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_by_rank)

    def remove(self, sequence: Sequence) -> None:
        """Forget it, wherever it is; a sequence that is nowhere any more is no error."""
        if sequence.is_running:
            self._stop_running(sequence)
        elif self._is_waiting(sequence):
            del self.waiting[bisect_left(self.waiting, sequence.rank, key=_by_rank)]

    def finish(self, sequence: Sequence) -> None:
        """It has all its tokens. Its length teaches what to expect of others."""
        length = sequence.num_output_tokens
        mean = self._observed_output
        self._observed_output = length if mean is None else mean + 0.1 * (length - mean)
        self.remove(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Undo `_admit`: out of the batch, pages given back. Its tokens stay, so coming back is an ordinary prefill."""
        self._stop_running(sequence)
        self.add(sequence)
        self.num_preemptions += 1

    # One step

    def schedule(self, limits: Limits | None = None) -> Scheduled:
        """The next step's rows, at most max_num_batched_tokens tokens in all, or what `limits` allow of them: those
        have room for every decoding row, and for something where none decodes.

        Empty only when nothing waits or runs, or all that runs has drawn its last token and only has to be told.
        """
        step = _Step(limits or Limits(self.max_num_batched_tokens, self.max_num_rows))
        is_open = self._is_open()
        if self.running:
            self._go_on(step)
        while is_open and self._can_admit(step):
            self._admit(self.waiting[0], step)
        return self._scheduled(step)

    def load(self, now_s: float) -> Load:
        """What the next step finds. Tokens that were drawn and not read count as there."""
        rows = self._running_rows()
        wanted = self.rows.num_wanted[rows]
        decoding = rows[wanted == 1]
        prefilling = (wanted > 1).nonzero()[0]
        first = self.running[prefilling[0]] if len(prefilling) else None
        return Load(
            num_decoding=len(decoding),
            num_context=int(self.rows.n_done[decoding].sum()) + len(decoding),
            prefill_start=first.n_done if first else 0,
            num_growth=int(self._observed_output or 0),
            oldest_s=self._oldest_s(first, now_s),
        )

    def _oldest_s(self, first: Sequence | None, now_s: float) -> float:
        """How long the first in rank without a token has been waiting for it."""
        early = [one for one in (first, *self.waiting[:1]) if one is not None and not one.num_output_tokens]
        return max((now_s - one.arrived_s for one in early), default=0.0)

    def _go_on(self, step: _Step) -> None:
        """Those that run already."""
        rows = self._running_rows()
        wanted = self.rows.num_wanted[rows]
        prefilling = [self.running[index] for index in (wanted > 1).nonzero()[0].tolist()]
        self._decode(rows[wanted == 1], step)
        for sequence in prefilling:
            self._continue(sequence, step)

    def advance(self, step: Scheduled) -> None:
        """The step runs, or did: what the next one stores and draws comes after it."""
        sampled = step.rows[step.is_sampled]
        self.rows.last_sample[sampled] = np.arange(len(sampled), dtype=np.int32)
        step = self._present(step, self.is_there(step))
        self.rows.n_done[step.rows] = step.context_lens
        self.rows.n_drawn[step.rows] += step.is_sampled
        for index in self.rows.is_forked[step.rows].nonzero()[0].tolist():
            self._end_copy(step.sequences[index])

    def rewind(self, step: Scheduled, indexes: SequenceOf[int]) -> None:
        """What was launched after the step, of these of its rows, began with a wrong token and counts for nothing.

        Called when what the step drew is appended. Storing that place again overwrites what is there.
        """
        where = np.asarray(indexes, dtype=np.intp)
        own = step.rows[where]
        self.rows.n_done[own] = step.context_lens[where]
        self.rows.n_drawn[own] = 0
        self.rows.times_taken[own] += 1

    def commit(self, step: Scheduled) -> Bools:
        """The step ran: its rows' tokens are stored. Called before what they drew is appended.

        Returns which of the rows are still there; the others' sequences left while the step ran.
        """
        is_there = self.is_there(step)
        step = self._present(step, is_there)
        self._count(step)
        num_full = step.context_lens // PAGE_SIZE
        for index in (num_full > self.rows.n_remembered[step.rows]).nonzero()[0].tolist():
            self._remember_pages(step.sequences[index], int(num_full[index]))
        return is_there

    def _present(self, step: Scheduled, is_there: Bools) -> Scheduled:
        """Those of the step's rows that are still there, as nearly always all are."""
        where = is_there.nonzero()[0]
        return step if len(where) == len(step) else step.only(where.tolist())

    def is_there(self, step: Scheduled) -> Bools:
        """Which of the step's rows still run the sequence that was scheduled."""
        is_there: Bools = self.rows.is_taken[step.rows] & (self.rows.times_taken[step.rows] == step.times_taken)
        return is_there

    @property
    def must_know_draws(self) -> bool:
        """Does the next step depend on tokens that were drawn but not read? (Their place in the batch needs none.)"""
        return bool((self.rows.is_penalized & self.rows.is_taken & (self.rows.n_drawn > 0)).any())

    def _count(self, step: Scheduled) -> None:
        is_decode = (step.num_tokens == 1) & (step.context_lens > self.rows.n_prompt[step.rows])
        num_decode = int(np.count_nonzero(is_decode))
        self.num_decode_tokens += num_decode
        self.num_prefill_tokens += int(step.num_tokens.sum()) - num_decode

    def _running_rows(self) -> Ints:
        """In rank order."""
        if self._order is None:
            self._order = np.array([sequence.row for sequence in self.running], dtype=np.int32)
        return self._order

    def _sequence_in(self, row: int) -> Sequence:
        sequence = self._by_row[row]
        assert sequence is not None
        return sequence

    def _scheduled(self, step: _Step) -> Scheduled:
        rows, num_tokens = step.decoding, np.ones(len(step.decoding), dtype=np.int32)
        is_sampled = num_tokens.astype(np.bool_)
        if step.num_tokens:
            others = np.array([*step.num_tokens], dtype=np.int32)
            num_others = np.array([*step.num_tokens.values()], dtype=np.int32)
            rows, num_tokens = np.concatenate([rows, others]), np.concatenate([num_tokens, num_others])
            is_sampled = num_tokens == self.rows.num_wanted[rows]
        return Scheduled(
            rows,
            num_tokens,
            self.rows.n_done[rows] + num_tokens,
            is_sampled,
            self.rows.times_taken[rows],
            self._sequences_of(step),
        )

    def _sequences_of(self, step: _Step) -> list[Sequence]:
        """In the order of packing."""
        if len(step.decoding) == len(self.running):  # in rank order, both
            return self.running.copy()
        return list(map(self._sequence_in, [*step.decoding.tolist(), *step.num_tokens]))

    def _decode(self, rows: Ints, step: _Step) -> None:
        """All of them, at once unless the pages for those that begin a new one run out."""
        crossing = rows[self.rows.n_done[rows] == self.rows.num_pages[rows] * PAGE_SIZE]
        if len(crossing) > self.pages.num_free:
            for sequence in list(map(self._sequence_in, rows.tolist())):
                self._continue(sequence, step)
            return
        if len(crossing):
            self.rows.add_pages(crossing, self.pages.allocate(len(crossing)))
        step.add_decoding(rows)

    def _continue(self, sequence: Sequence, step: _Step) -> None:
        num_tokens = min(sequence.num_wanted, step.budget)
        if sequence.is_running and num_tokens and self._make_room(sequence, num_tokens, step):
            step.add(sequence, num_tokens)

    def _make_room(self, sequence: Sequence, num_tokens: int, step: _Step) -> bool:
        """Give it pages for the step, at the cost of the last in rank. False: that was the sequence itself."""
        missing = num_pages_for(sequence.n_done + num_tokens) - sequence.num_pages
        if missing <= 0:
            return True
        while missing > self.pages.num_free:
            victim = self.running[-1]
            step.remove(victim)
            self.preempt(victim)
            if victim is sequence:
                return False
        sequence.add_pages(self.pages.allocate(missing))
        return True

    # Admission

    def _is_open(self) -> bool:
        """Are newcomers let in at this step? Always where nothing runs, else every so many steps."""
        self._num_steps_shut = (self._num_steps_shut + 1) % self._interval if self.running else 0
        return self._num_steps_shut == 0

    def _can_admit(self, step: _Step) -> bool:
        """Is there a row, a token and enough pages for the first in the queue? No later one ever passes it over."""
        if not self.waiting or step.budget <= 0 or len(self.running) >= step.max_num_rows:
            return False
        if step.num_preempted and not step.is_empty:  # what was just put out would come straight back
            return False
        if not self.running:
            return True
        if step.num_promised is None:
            step.num_promised = self.num_promised_pages()
        return self._num_pages_to_reserve(self.waiting[0]) <= self.pages.num_free - step.num_promised

    def _admit(self, sequence: Sequence, step: _Step) -> None:
        """The first in the queue, from waiting to running, with every page that already holds a part of its prefix."""
        del self.waiting[0]  # the first in the queue, always
        insort(self.running, sequence, key=_by_rank)
        sequence.join(self.rows)
        self._by_row[sequence.row], self._order = sequence, None
        source = self._fork_source(sequence)
        if source is not None:
            self._fork(source, sequence)
        else:
            self._hold_prefix(sequence, self._cached_prefix(sequence))
            self.num_cached_tokens += sequence.n_done
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = 0 if source else min(sequence.n_done, sequence.n_prompt)
        self._continue(sequence, step)
        if step.num_promised is not None:
            step.num_promised += self._num_missing_pages(sequence)

    def _stop_running(self, sequence: Sequence) -> None:
        """Undo `_admit` and all that came since."""
        del self.running[bisect_left(self.running, sequence.rank, key=_by_rank)]
        if sequence.copy_source is not None:
            self._end_copy(sequence)
        self.pages.release(sequence.pages)
        self._by_row[sequence.row], self._order = None, None
        sequence.leave()

    def _hold_prefix(self, sequence: Sequence, pages: list[int]) -> None:
        if not pages:  # the row begins with none
            return
        self.pages.hold(pages)
        sequence.add_pages(pages)
        sequence.start_at(len(pages) * PAGE_SIZE, n_remembered=len(pages))

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """Cached pages of its known tokens but the last, which must be computed to draw the next."""
        if not self.pages.enable_prefix_caching:
            return []
        return self.pages.match(sequence.page_digests((sequence.n_total - 1) // PAGE_SIZE, self.pages))

    # Choices of one request: prompt computed once, pages shared, the last partial one copied

    def _fork_source(self, sequence: Sequence) -> Sequence | None:
        """A running choice of the same request with the whole prompt in its pages."""
        for other in sequence.siblings:
            if other is not sequence and other.is_running and other.n_done >= sequence.n_prompt:
                return other
        return None

    def _fork(self, source: Sequence, sequence: Sequence) -> None:
        """Start after all prompt tokens but the last, which is recomputed for a draw of its own.

        A shared page is never written: the one in which the recomputed token lies is copied. The source page is held
        until the copy is done, whatever becomes of the source.
        """
        n_done = sequence.n_prompt - 1
        num_shared = n_done // PAGE_SIZE
        self._hold_prefix(sequence, source.pages[:num_shared])
        if n_done % PAGE_SIZE:
            page = source.pages[num_shared]
            self.pages.hold([page])
            sequence.fork_from(page)
        sequence.start_at(n_done, n_remembered=num_shared)

    def _end_copy(self, sequence: Sequence) -> None:
        assert sequence.copy_source is not None
        self.pages.release([sequence.copy_source])
        sequence.fork_from(None)

    # Pages

    def _remember_pages(self, sequence: Sequence, num_full: int) -> None:
        row = sequence.row
        if self.pages.enable_prefix_caching:
            digests = sequence.page_digests(num_full, self.pages)
            for index in range(int(self.rows.n_remembered[row]), num_full):
                self.pages.remember(int(self.rows.page_ids[row, index]), digests[index])
        self.rows.n_remembered[row] = num_full

    def num_expected_pages(self, sequence: Sequence) -> int:
        """Pages for what is known of it and what others' outputs let expect.

        Reserving max_tokens would leave rows empty, reserving nothing would preempt all the time.
        """
        if self._observed_output is None:
            return num_pages_for(sequence.max_total)
        expected = max(sequence.n_prompt + int(self._observed_output), sequence.n_total) + PAGE_SIZE
        return num_pages_for(min(sequence.max_total, expected))

    def num_unpromised_pages(self) -> int:
        """Free pages less those that running sequences are expected to take; may be negative."""
        return self.pages.num_free - self.num_promised_pages()

    def num_promised_pages(self) -> int:
        """Free pages that running sequences are expected to take yet."""
        return self.rows.num_missing_pages(self._running_rows(), self._observed_output) if self.running else 0

    def _num_missing_pages(self, sequence: Sequence) -> int:
        """Pages that it is expected to take beyond those it has."""
        return max(0, self.num_expected_pages(sequence) - sequence.num_pages)

    def _num_pages_to_reserve(self, sequence: Sequence) -> int:
        """Free pages its admission would cost in the end: pages that others hold are shared, not taken."""
        source = self._fork_source(sequence)
        if source is not None:
            return self.num_expected_pages(sequence) - (sequence.n_prompt - 1) // PAGE_SIZE
        return self.num_expected_pages(sequence) - self.pages.num_held(self._cached_prefix(sequence))

    # Invariants

    def _is_waiting(self, sequence: Sequence) -> bool:
        index = bisect_left(self.waiting, sequence.rank, key=_by_rank)
        return index < len(self.waiting) and self.waiting[index] is sequence

    def check_integrity(self) -> None:
        """Raises AssertionError when a list, a row or a page table contradicts another."""
        for rows in (self.waiting, self.running):
            assert rows == sorted(rows, key=_by_rank), "a list is out of rank order"
        assert len(self.running) <= self.max_num_rows, "more rows than allowed"
        assert all(row.is_running for row in self.running), "a running row thinks it waits"
        assert [self._by_row[row.row] for row in self.running] == self.running, "a row is another sequence's"
        assert self.rows.is_taken.sum() == len(self.running), "a row is taken by nobody"
        assert self._running_rows().tolist() == [row.row for row in self.running], "the rows are out of rank order"
        self.rows.check_integrity()
        for row in self.waiting:
            holds = row.is_running or row.num_pages or row.n_done or row.copy_source is not None
            assert not holds, "a waiting row holds something"
        for row in self.running:
            self._check_row(row)
        self.pages.check_integrity(list(self._holders()))

    def _check_row(self, row: Sequence) -> None:
        assert self.rows.n_prompt[row.row] == row.n_prompt, "a row has another sequence's prompt"
        assert self.rows.is_forked[row.row] == (row.copy_source is not None), "a copy is forgotten, or a ghost"
        assert row.n_prompt <= row.n_total <= row.max_total, "a row knows more tokens than it may"
        num_drawn = int(self.rows.n_drawn[row.row])
        assert 0 <= num_drawn <= 1, "a row is more than a step ahead of what is known of it"
        assert row.n_done < row.n_total + num_drawn, "a row wants nothing, yet runs"
        assert row.num_pages >= num_pages_for(row.n_done), "stored tokens lack a page"
        own = row.pages[row.n_done // PAGE_SIZE :]
        others = {page for row_ in self.running if row_ is not row for page in row_.pages}
        assert not others.intersection(own), "a page that will be written is shared"

    def _holders(self) -> Iterator[list[int]]:
        for row in self.running:
            yield row.pages
            if row.copy_source is not None:
                yield [row.copy_source]
