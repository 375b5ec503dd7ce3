"""The measurement of host work, on a small scale: its engines run what they claim to run."""

import pytest
from tokenmill_worker.engine.echo import EchoTokenizer

from benchmarks import host_work


def test_every_part_is_measured_and_all_rows_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_work, "NUM_WAITING", 5)
    figures = host_work.measure(EchoTokenizer(), 3, steps=2, backend="sdpa")
    parts = {name.partition(",")[0] for name in figures}
    assert parts == {"engine", "runner", "capacity", "statistics", "TOTAL greedy (engine + runner + capacity)"}
    assert all(micros > 0 for micros in figures.values())


def test_others_wait_behind_the_rows_that_run() -> None:
    engine = host_work.running_engine(EchoTokenizer(), host_work.KINDS["sampled"], num_rows=2, num_waiting=7)
    assert (engine.statistics().num_running, engine.statistics().num_waiting) == (2, 7)
    assert len(engine.step()) == 2
