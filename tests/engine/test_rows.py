"""Rows: what a sequence knows survives its neighbours' coming, going and growing."""

import numpy as np
import pytest
from tokenmill_worker.engine.api import SamplingParams
from tokenmill_worker.engine.batch import PAGE_SIZE, Ints
from tokenmill_worker.engine.rows import Rows

PARAMS = SamplingParams(temperature=0.5, top_k=3)


def ints(*values: int) -> Ints:
    return np.array(values, dtype=np.int32)


def take(rows: Rows, *known: int, max_total: int = 64) -> int:
    return rows.take(ints(*known), PARAMS, n_prompt=len(known), max_total=max_total, seed=-1)


def test_a_longer_sequence_widens_the_tables_and_nobody_loses_a_token_or_a_page() -> None:
    rows = Rows(3)
    first = take(rows, 7, 8, 9)
    rows.add_pages(ints(first), [41])
    second = take(rows, 5, max_total=5000)
    rows.append(ints(first, second), ints(10, 6))
    assert rows.token_ids.shape[1] >= 5000
    assert rows.page_ids.shape[1] * PAGE_SIZE >= 5000
    assert rows.token_ids[first, : rows.n_total[first]].tolist() == [7, 8, 9, 10]
    assert rows.token_ids[second, : rows.n_total[second]].tolist() == [5, 6]
    assert rows.page_ids[first, 0] == 41
    rows.check_integrity()


def test_a_row_taken_again_starts_with_nothing_stored() -> None:
    rows = Rows(1)
    row = take(rows, 1, 2)
    rows.add_pages(ints(row), [3])
    rows.n_done[row] = rows.n_remembered[row] = 1
    rows.give_back(row)
    assert take(rows, 4) == row
    assert (rows.n_total[row], rows.n_done[row], rows.num_pages[row], rows.n_remembered[row]) == (1, 0, 0, 0)
    assert rows.settings[row].tolist() == [0.5, 3.0, 1.0, 0.0]
    assert rows.seeds[row] == 2**64 - 1


@pytest.mark.parametrize(("observed", "missing"), [(None, 3), (0.0, 1), (10.0, 2), (10_000.0, 3)])
def test_missing_pages_are_those_of_the_observed_output_but_never_more_than_the_request_may_take(
    observed: float | None, missing: int
) -> None:
    rows = Rows(2)
    row = take(rows, *range(PAGE_SIZE), max_total=4 * PAGE_SIZE)
    rows.add_pages(ints(row), [0])
    assert rows.num_missing_pages(ints(row), observed) == missing
