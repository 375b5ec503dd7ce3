"""The grid that a tuned configuration is held against: resumed, not repeated, and compared in turn."""

from pathlib import Path

from tokenmill_worker.tune.figures import Figures
from tokenmill_worker.tune.space import Point

from benchmarks.tune_grid import Kept, as_point, as_row, compare, fill, grid
from tests.tune.machine import Clock, simulated_loop

POINTS = [Point(rows, 512, 1) for rows in (4, 16, 32)]


def test_a_grid_goes_on_where_it_stopped(tmp_path: Path) -> None:
    loop, file = simulated_loop(Clock()), tmp_path / "grid.json"
    assert not fill(loop, POINTS, Kept(file), seconds=1.0, deadline_s=0.0)
    assert fill(loop, POINTS[:2], Kept(file), seconds=1.0, deadline_s=float("inf"))
    first = Kept(file).content["points"]
    assert fill(loop, POINTS, Kept(file), seconds=1.0, deadline_s=float("inf"))
    assert Kept(file).points == POINTS
    assert Kept(file).content["points"][:2] == first


def test_the_points_near_the_best_are_looked_at_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "grid.json")
    for point, rate in zip(POINTS, (100.0, 290.0, 300.0), strict=True):
        kept.add(point, Figures(rate, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1))
    assert kept.near_best() == [POINTS[2], POINTS[1]]


def test_a_point_against_itself_comes_out_even() -> None:
    found = compare(simulated_loop(Clock()), POINTS[1], POINTS[1], num_rounds=2, seconds=3.0)
    assert 0.97 < found["tuned_over_best"] < 1.03
    assert len(found["tokens_per_s"]["best"]) == 2


def test_the_grid_has_every_combination_with_room_for_prefill() -> None:
    points = grid(2)
    assert 120 < len(points) < 200
    assert len(set(points)) == len(points)
    assert {point.num_threads for point in points} == {1, 2}
    assert as_point(as_row(points[0])) == points[0]
