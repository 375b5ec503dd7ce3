"""The index on disk: counting equal rows, finding done ones, giving the input's order."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenmill.bulk.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def test_equal_contents_are_counted_from_zero(ledger: Ledger) -> None:
    assert [ledger.see(content) for content in (b"a", b"b", b"a", b"a")] == [0, 0, 1, 2]


def test_a_row_is_done_once(ledger: Ledger) -> None:
    assert not ledger.is_done("x")
    assert ledger.mark_done("x", 0)
    assert ledger.is_done("x")
    assert not ledger.mark_done("x", 99)


def test_lines_are_given_in_the_order_of_the_input_then_those_it_no_longer_holds(ledger: Ledger) -> None:
    for start, row in enumerate(["c", "gone", "a", "b"]):
        ledger.mark_done(row, start)
    for place, row in enumerate(["a", "b", "not done yet", "c"]):
        ledger.place(place, row)
    assert list(ledger.starts_in_input_order()) == [2, 3, 0, 1]


def test_nothing_is_left_behind_and_an_old_index_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"left by a killed run")
    ledger = Ledger(path)
    ledger.mark_done("x", 0)
    ledger.close()
    assert list(tmp_path.iterdir()) == []
