"""What the benchmark of the ETA makes of what it saw."""

from benchmarks.bulk_eta import Observer, figures


def test_what_was_told_stands_beside_what_was_left() -> None:
    observer = Observer(told=[(1.0, 0, None), (2.0, 1, 9.0), (6.0, 5, 6.0), (8.0, 9, None)], ended_s=11.0)
    found = figures(observer, 10)
    assert (found["at_10_told_s"], found["at_10_true_s"], found["at_10_error"]) == (9.0, 9.0, 0.0)
    assert found["at_50_error"] == 0.2
    assert (found["at_75_true_s"], found["at_75_error"]) == (3.0, None)
