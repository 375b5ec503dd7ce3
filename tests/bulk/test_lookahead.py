"""Rows that begin alike go out together, and none is lost or held for long."""

from collections.abc import Iterator

import pytest
from tokenmill.bulk import lookahead
from tokenmill.bulk.lookahead import neighbours
from tokenmill.bulk.planner import OutgoingRow
from tokenmill.bulk.rows import Row
from tokenmill.wire.store import Submission


def rows(prompts: list[str]) -> list[OutgoingRow]:
    fields = ({"prompt": prompt, "max_tokens": len(prompts) - n} for n, prompt in enumerate(prompts))
    return [OutgoingRow(Row(n, {}), str(n), Submission.build(f"r:{n}", one)) for n, one in enumerate(fields)]


def test_rows_with_a_common_beginning_stand_together_whatever_else_they_ask() -> None:
    mixed = rows(["b 1", "a 1", "b 2", "a 2"])
    assert [row.row.number for row in neighbours(mixed)] == [1, 3, 0, 2]


@pytest.mark.parametrize("num", [0, 1, 511, 512, 513, 1_500])
def test_every_row_comes_once(num: int) -> None:
    mixed = rows([f"{n % 7} {n}" for n in range(num)])
    assert sorted(row.row.number for row in neighbours(mixed)) == list(range(num))


@pytest.mark.parametrize(("bound", "value"), [("MAX_ROWS", 4), ("MAX_BYTES", 100)])
def test_no_more_is_read_ahead_than_fits(monkeypatch: pytest.MonkeyPatch, bound: str, value: int) -> None:
    monkeypatch.setattr(lookahead, bound, value)
    read = 0

    def counted() -> Iterator[OutgoingRow]:
        nonlocal read
        for row in rows(["x" * 10] * 20):
            read += 1
            yield row

    next(neighbours(counted()))
    assert read <= 4
