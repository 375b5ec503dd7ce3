"""Successive halving, knees, choices and targets, on figures that are made up."""

import random
from dataclasses import replace

import pytest
from tokenmill_worker.tune.budget import Budget
from tokenmill_worker.tune.figures import Figures, Targets, percentile
from tokenmill_worker.tune.halving import Ranked, halve, rank, rungs
from tokenmill_worker.tune.knee import Seen, is_flat, knee
from tokenmill_worker.tune.loop import OutOfTimeError
from tokenmill_worker.tune.session import Goal, Measured, choose
from tokenmill_worker.tune.space import Point, Space, space_of

from tests.tune.machine import Clock

NO_TARGETS = Targets()


def figures(tokens_per_s: float, *, token_ms: float = 10.0, ttft_ms: float = 100.0) -> Figures:
    return Figures(tokens_per_s, token_ms, 2 * token_ms, token_ms, token_ms, ttft_ms, ttft_ms, 1.0, 0, 10, 1.0)


def points(num: int) -> list[Point]:
    return [Point(rows, 512, 1) for rows in range(1, num + 1)]


class Machine:
    """A point gives as many tokens a second as it has rows, but for noise and for the hour of the day."""

    def __init__(self, clock: Clock, *, noise: float = 0.0) -> None:
        self.clock, self.noise, self.rng = clock, noise, random.Random(3)
        self.measured: list[Point] = []

    def measure(self, point: Point, seconds: float) -> Figures:
        self.clock.wait(seconds)
        self.measured.append(point)
        slow = 0.6 if int(self.clock.now_s / 20) % 2 else 1.0
        return figures(point.max_num_seqs * slow * (1 + self.noise * (self.rng.random() - 0.5)))


def test_the_ladder_goes_from_all_points_to_three_that_are_measured_thrice() -> None:
    assert [tuple(rung) for rung in rungs(27)] == [(27, 1), (9, 1), (3, 3)]
    assert [tuple(rung) for rung in rungs(2)] == [(2, 3)]


def test_halving_finds_the_best_of_many_and_keeps_to_its_time() -> None:
    clock = Clock()
    machine = Machine(clock, noise=0.02)
    found = halve(points(27), machine.measure, Budget(60.0, now=clock.now), NO_TARGETS)
    assert found[0].point.max_num_seqs >= 26
    assert len(found) == 3
    assert clock.now_s == pytest.approx(60, abs=1)
    assert machine.measured.count(found[0].point) == 5


def test_a_machine_that_slows_down_for_a_while_misleads_nobody_in_the_last_rung() -> None:
    clock = Clock()
    found = rank(points(3), Machine(clock).measure, Budget(90.0, now=clock.now), NO_TARGETS, num_rounds=3)
    assert [one.point.max_num_seqs for one in found] == [3, 2, 1]


def test_a_guest_is_measured_among_the_finalists() -> None:
    clock = Clock()
    guest = Point(1, 64, 1)
    found = halve(points(9), Machine(clock).measure, Budget(30.0, now=clock.now), NO_TARGETS, also=guest)
    assert guest in [one.point for one in found]


def test_halving_tells_what_it_has_when_the_time_is_up() -> None:
    clock = Clock()

    def measure(point: Point, seconds: float) -> Figures:
        clock.wait(10.0)
        if clock.now_s > 25:
            raise OutOfTimeError
        return figures(point.max_num_seqs)

    found = halve(points(9), measure, Budget(25.0, now=clock.now), NO_TARGETS)
    assert [one.point.max_num_seqs for one in found] == [2, 1]
    assert halve(points(9), measure, Budget(0.0, now=clock.now), NO_TARGETS) == []


def test_the_knee_is_where_throughput_stops_and_time_begins() -> None:
    curve = [Seen(rows, rows / max(8, rows / 4), max(8, rows / 4)) for rows in (1, 2, 4, 8, 16, 32, 64, 128)]
    found = knee(curve)
    assert found is not None
    assert found.num_rows == 32
    assert knee(curve[:2]) is None


def test_a_sweep_is_flat_when_its_last_points_bring_nothing() -> None:
    assert is_flat([1, 2, 4, 4.05, 4.1])
    assert not is_flat([1, 2, 4, 8])
    assert not is_flat([1, 1])


def test_targets_are_held_at_their_limit_and_a_near_miss_costs_less_than_a_wide_one() -> None:
    targets = Targets(ttft_ms=100, tpot_ms=10)
    assert targets.are_held(figures(100))
    near, wide = figures(100, token_ms=10.5), figures(100, token_ms=20)
    assert not targets.are_held(near)
    assert 100 > targets.merit(near) > targets.merit(wide)
    assert Targets(tpot_ms=10).are_held(figures(100, ttft_ms=9_999))
    assert not Targets(ttft_ms=100).are_held(figures(100, ttft_ms=0.0)), "nobody came"
    assert not Targets()


def ranked(rows: int, merit: float, *, token_ms: float) -> Ranked:
    return Ranked(Point(rows, 512, 1), figures(100 * merit, token_ms=token_ms), merit)


def test_of_equals_the_quicker_is_chosen_unless_throughput_is_all() -> None:
    finalists = [ranked(64, 1.01, token_ms=80), ranked(32, 1.0, token_ms=40), ranked(16, 0.8, token_ms=20)]
    assert choose(finalists, [], Goal()).point.max_num_seqs == 32
    assert choose(finalists, [], Goal(slack=0)).point.max_num_seqs == 64


def test_of_equals_one_that_lets_newcomers_wait_for_the_sake_of_the_others_is_not_chosen() -> None:
    kept_waiting = Ranked(Point(64, 2048, 16), figures(100, token_ms=38, ttft_ms=1500), 1.0)
    served = Ranked(Point(64, 512, 1), figures(100, token_ms=40, ttft_ms=200), 1.0)
    assert choose([kept_waiting, served], [], Goal()).point.scheduling_interval == 1
    nobody_came = Ranked(Point(96, 512, 1), figures(100, token_ms=60, ttft_ms=0), 1.0)
    few_rows = Ranked(Point(32, 512, 1), figures(100, token_ms=20, ttft_ms=100), 1.0)
    assert choose([nobody_came, few_rows], [], Goal()).point.max_num_seqs == 32


def test_what_holds_the_targets_is_chosen_before_what_is_faster() -> None:
    finalists = [ranked(64, 1.0, token_ms=80), ranked(32, 0.9, token_ms=40)]
    slow = Measured(Point(4, 512, 1), figures(10, token_ms=5))
    assert choose(finalists, [slow], Goal(Targets(tpot_ms=50))).point.max_num_seqs == 32
    assert choose(finalists, [slow], Goal(Targets(tpot_ms=10))).point.max_num_seqs == 4
    assert choose(finalists, [slow], Goal(Targets(tpot_ms=1))).point.max_num_seqs == 64


def test_typical_figures_ignore_one_disturbed_window() -> None:
    found = Figures.typical([figures(100), figures(101), replace(figures(5), seconds=9.0)])
    assert found.tokens_per_s == 100
    assert found.seconds == 11


def test_percentiles_lie_between_values() -> None:
    assert percentile([], 50) == 0
    assert percentile([3, 1, 2], 50) == 2
    assert percentile([0, 10], 95) == pytest.approx(9.5)


def test_the_space_leaves_room_for_prefill_and_tries_fewer_threads_once() -> None:
    space = space_of("cpu", num_cores=2)
    assert all(point.max_num_batched_tokens >= 2 * point.max_num_seqs for point in space.grid())
    near = space.around([64, 32], num=20)
    assert near[:2] == [space.usual(64), space.usual(32)]
    assert {point.max_num_seqs for point in near if point.num_threads == 1} == {64}
    assert len(set(near)) == 20


def test_a_gpu_has_more_rows_and_no_threads_to_set() -> None:
    space = space_of("cuda", num_cores=8)
    assert max(space.max_num_seqs) == 1024
    assert {point.num_threads for point in space.grid()} == {None}


def test_rows_beyond_the_pool_are_left_out() -> None:
    assert list(Space().within(most_rows=20).max_num_seqs) == [1, 2, 4, 8, 12, 16]
    assert list(Space([8, 16]).within(most_rows=3).max_num_seqs) == [3]
