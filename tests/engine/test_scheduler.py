from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tokenmill_worker.engine.api import SamplingParams
from tokenmill_worker.engine.batch import PAGE_SIZE
from tokenmill_worker.engine.pages import Pages, num_pages_for
from tokenmill_worker.engine.scheduler import Scheduled, ScheduledRow, Scheduler
from tokenmill_worker.engine.sequence import Sequence

PARAMS = SamplingParams()


def make_scheduler(
    *, num_pages: int = 64, max_num_seqs: int = 8, max_num_batched_tokens: int = 64, interval: int = 1
) -> Scheduler:
    return Scheduler(
        Pages(num_pages), max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, interval=interval
    )


def make_sequence(num_prompt: int, *, max_tokens: int = 64, arrival: int = 0, priority: int = 0) -> Sequence:
    prompt = [arrival % 200] * num_prompt
    return Sequence(prompt, PARAMS, max_total=num_prompt + max_tokens, rank=(priority, arrival, 0))


def commit(scheduler: Scheduler, step: Scheduled) -> None:
    """What an engine does after a step, with a model that always says 7."""
    scheduler.advance(step)
    drew = step.rows[scheduler.commit(step) & step.is_sampled]
    scheduler.rows.append(drew, np.full(len(drew), 7, dtype=np.int32))
    for sequence in step.sequences:
        if sequence.is_running and sequence.n_total == sequence.max_total:
            scheduler.finish(sequence)
    scheduler.check_integrity()


def shares(rows: Iterable[ScheduledRow]) -> list[tuple[int, int]]:
    """(arrival, tokens) of each scheduled row, in order."""
    return [(row.sequence.rank[1], row.num_tokens) for row in rows]


def test_decoding_rows_come_first_then_running_prefills_then_newcomers() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=48)
    scheduler.add(make_sequence(10, arrival=1))
    commit(scheduler, scheduler.schedule())
    scheduler.add(make_sequence(60, arrival=2))
    commit(scheduler, scheduler.schedule())
    scheduler.add(make_sequence(5, arrival=3))
    assert shares(scheduler.schedule()) == [(1, 1), (2, 13), (3, 5)]


def test_a_prompt_longer_than_the_budget_runs_in_chunks_and_is_sampled_at_its_end() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=32)
    scheduler.add(make_sequence(70))
    sampled = []
    for num_tokens in (32, 32, 6, 1):
        rows = scheduler.schedule()
        assert [row.num_tokens for row in rows] == [num_tokens]
        sampled += rows.is_sampled.tolist()
        commit(scheduler, rows)
    assert sampled == [False, False, True, True]


def test_newcomers_join_by_priority_then_by_arrival() -> None:
    scheduler = make_scheduler()
    for arrival, priority in ((1, 1), (2, 0), (3, 1), (4, 0)):
        scheduler.add(make_sequence(4, arrival=arrival, priority=priority))
    assert [arrival for arrival, _ in shares(scheduler.schedule())] == [2, 4, 1, 3]


def test_newcomers_join_at_every_intervalth_step_and_at_once_where_nothing_runs() -> None:
    scheduler = make_scheduler(interval=3)
    num_rows = []
    for arrival in range(7):
        scheduler.add(make_sequence(4, arrival=arrival))
        rows = scheduler.schedule()
        num_rows.append(len(rows))
        commit(scheduler, rows)
    assert num_rows == [1, 1, 1, 4, 4, 4, 7]


def test_rows_never_exceed_the_token_budget_so_every_decoding_row_is_in_every_step() -> None:
    scheduler = make_scheduler(max_num_seqs=8, max_num_batched_tokens=3)
    for arrival in range(5):
        scheduler.add(make_sequence(1, arrival=arrival))
    for _ in range(10):
        decoding = [row for row in scheduler.running if row.num_wanted == 1]
        rows = scheduler.schedule()
        assert {id(row) for row in decoding} <= {id(row.sequence) for row in rows}
        commit(scheduler, rows)
    assert len(scheduler.running) == 3


def test_when_pages_run_out_the_youngest_gives_its_pages_back_and_keeps_its_tokens() -> None:
    scheduler = make_scheduler(num_pages=6, max_num_batched_tokens=128)
    old, young = make_sequence(33, arrival=1, max_tokens=90), make_sequence(33, arrival=2, max_tokens=90)
    scheduler._observed_output = 1.0
    scheduler.add(old)
    scheduler.add(young)
    for _ in range(65):
        commit(scheduler, scheduler.schedule())
    assert scheduler.num_preemptions == 1
    assert scheduler.running == [old]
    assert scheduler.waiting == [young]
    assert (young.n_done, young.num_pages) == (0, 0)
    assert young.n_total == 97
    assert old.num_pages == 4


def test_a_preempted_sequence_finds_its_own_pages_in_the_prefix_cache() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=128)
    sequence = make_sequence(100)
    scheduler.add(sequence)
    commit(scheduler, scheduler.schedule())
    scheduler.preempt(sequence)
    scheduler.check_integrity()
    assert shares(scheduler.schedule()) == [(0, 101 - 96)]


def test_a_prompt_found_whole_recomputes_what_is_needed_for_a_draw() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=128)
    for arrival in (0, 200):  # equal tokens: 200 % 200
        scheduler.add(make_sequence(64, arrival=arrival))
        rows = scheduler.schedule()
        commit(scheduler, rows)
    assert shares(rows) == [(0, 1), (200, 32)]


def test_admission_reserves_the_prompt_and_the_observed_output_length() -> None:
    scheduler = make_scheduler(num_pages=9, max_num_batched_tokens=512)
    for arrival in range(3):
        scheduler.add(make_sequence(32, arrival=arrival, max_tokens=96))
    assert [arrival for arrival, _ in shares(scheduler.schedule())] == [0, 1]  # four pages each
    scheduler._observed_output = 10.0
    assert [arrival for arrival, _ in shares(scheduler.schedule())] == [0, 1, 2]  # three are to be expected


def test_the_first_in_the_queue_is_never_passed_over() -> None:
    scheduler = make_scheduler(num_pages=4)
    scheduler.add(make_sequence(60, arrival=0, max_tokens=20))
    commit(scheduler, scheduler.schedule())
    scheduler.add(make_sequence(90, arrival=1, max_tokens=20))
    scheduler.add(make_sequence(2, arrival=2, max_tokens=2))
    assert [arrival for arrival, _ in shares(scheduler.schedule())] == [0]


def test_choices_share_full_pages_and_copy_the_last_partial_one() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=128)
    siblings: list[Sequence] = []
    first, second = (
        Sequence([1] * 50, PARAMS, max_total=90, rank=(0, 0, index), siblings=siblings) for index in range(2)
    )
    scheduler.add(first)
    commit(scheduler, scheduler.schedule())
    scheduler.add(second)
    rows = scheduler.schedule()
    assert [row.num_tokens for row in rows] == [1, 1]
    assert second.pages[0] == first.pages[0]
    assert second.pages[1] != first.pages[1]
    assert rows.sequences[1].copy_source == first.pages[1]
    commit(scheduler, rows)
    assert second.copy_source is None
    assert second.n_done == 50


def test_a_preempted_source_keeps_its_page_until_the_copy_is_done() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=128)
    siblings: list[Sequence] = []
    first, second = (
        Sequence([1] * 50, PARAMS, max_total=90, rank=(0, 0, index), siblings=siblings) for index in range(2)
    )
    scheduler.add(first)
    commit(scheduler, scheduler.schedule())
    source = first.pages[1]
    scheduler.add(second)
    rows = scheduler.schedule()
    scheduler.preempt(first)
    everything_free = scheduler.pages.allocate(scheduler.pages.num_free)
    assert source not in everything_free
    scheduler.pages.release(everything_free)
    commit(scheduler, rows)


def test_a_row_that_loses_its_pages_to_a_better_one_leaves_the_step() -> None:
    scheduler = Overcommitting(Pages(4), max_num_seqs=4, max_num_batched_tokens=64)
    decoding = make_sequence(31, arrival=1, priority=1)
    scheduler.add(decoding)
    commit(scheduler, scheduler.schedule())
    urgent = make_sequence(120, arrival=2, max_tokens=8)
    scheduler.add(urgent)
    commit(scheduler, scheduler.schedule())
    assert shares(scheduler.schedule()) == [(2, 57)]  # all four pages
    assert scheduler.waiting == [decoding]


def test_a_choice_that_cannot_fork_in_a_full_pool_starts_by_itself_in_the_same_step() -> None:
    scheduler = Overcommitting(Pages(2), max_num_seqs=4, max_num_batched_tokens=64)
    siblings: list[Sequence] = []
    first, second = (
        Sequence([1] * 40, PARAMS, max_total=60, rank=(0, 0, index), siblings=siblings) for index in range(2)
    )
    scheduler.add(second)
    commit(scheduler, scheduler.schedule())
    scheduler.add(first)  # forks from `second`, whose pages it must have: only its own prefix page stays cached
    rows = scheduler.schedule()
    assert rows.sequences == [first]
    commit(scheduler, rows)


def test_a_broken_page_table_is_noticed() -> None:
    scheduler = make_scheduler()
    for arrival in range(2):
        scheduler.add(make_sequence(8, arrival=arrival))
    commit(scheduler, scheduler.schedule())
    scheduler.running[0].page_ids[0] = scheduler.running[1].page_ids[0]
    with pytest.raises(AssertionError):
        scheduler.check_integrity()


class Overcommitting(Scheduler):
    """Admits without a look at the pages, so that they run out all the time."""

    def num_promised_pages(self) -> int:
        return -10_000


class SchedulerMachine(RuleBasedStateMachine):
    """Sequences come, step, are preempted and removed in any order, in a pool that is often too small."""

    @initialize(
        kind=st.sampled_from([Scheduler, Overcommitting]),
        num_pages=st.integers(3, 12),
        rows=st.integers(1, 5),
        budget=st.sampled_from([1, 7, 32, 100]),
    )
    def make(self, kind: type[Scheduler], num_pages: int, rows: int, budget: int) -> None:
        self.budget = budget
        self.num_added = 0
        self.scheduler = kind(Pages(num_pages), max_num_seqs=rows, max_num_batched_tokens=budget)

    @rule(
        num_prompt=st.integers(1, 150),
        max_tokens=st.integers(1, 60),
        n=st.integers(1, 3),
        priority=st.integers(0, 2),
        token_id=st.integers(0, 1),
    )
    def add(self, num_prompt: int, max_tokens: int, n: int, priority: int, token_id: int) -> None:
        max_total = min(num_prompt + max_tokens, self.scheduler.pages.num_pages * PAGE_SIZE + 1)
        self.num_added += 1
        siblings: list[Sequence] = []
        for index in range(n):
            rank = (priority, self.num_added, index)
            prompt = [token_id] * min(num_prompt, max_total - 1)
            self.scheduler.add(Sequence(prompt, PARAMS, max_total=max_total, rank=rank, siblings=siblings))

    @rule()
    def step(self) -> None:
        self._step()

    def _step(self) -> None:
        scheduler = self.scheduler
        decoding = {id(row) for row in scheduler.running if row.num_wanted == 1}
        has_work = bool(scheduler.waiting or scheduler.running)
        rows = scheduler.schedule()
        assert bool(rows) == has_work
        assert sum(row.num_tokens for row in rows) <= self.budget
        for row in rows:
            assert row.sequence.is_running
            assert 1 <= row.num_tokens <= row.sequence.num_wanted
            assert row.sequence.num_pages == num_pages_for(row.sequence.n_done + row.num_tokens)
        assert decoding & {id(row) for row in scheduler.running} <= {id(row.sequence) for row in rows}
        commit(scheduler, rows)

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        self.scheduler.preempt(data.draw(st.sampled_from(self.scheduler.running)))

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        known = [*self.scheduler.running, *self.scheduler.waiting]
        if known:
            sequence = data.draw(st.sampled_from(known))
            self.scheduler.remove(sequence)
            self.scheduler.remove(sequence)  # gone already: no error

    @invariant()
    def check(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    def teardown(self) -> None:
        """Whatever happened: everything that is left finishes, and every page comes back."""
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        while scheduler.waiting or scheduler.running:
            self._step()
        assert scheduler.pages.num_free == scheduler.pages.num_pages


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=40, stateful_step_count=25)
