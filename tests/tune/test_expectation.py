"""What steps that were timed let expect of settings that were not, on a machine whose step times are known."""

import pytest
from tokenmill_worker.tune.expectation import expectation
from tokenmill_worker.tune.space import Point

from tests.tune.machine import Clock, simulated_loop


def test_what_is_expected_of_other_settings_is_what_they_do() -> None:
    loop = simulated_loop(Clock(), prompt_tokens="~24")
    for rows in (4, 16, 64):
        loop.closed(Point(rows, 512, 1), 4.0)
    expect = expectation(loop.steps, mean_prompt=loop.mean_prompt, mean_output=loop.mean_output)
    assert expect is not None
    for point in (Point(32, 512, 1), Point(32, 512, 8), Point(64, 256, 1)):
        assert expect(point) == pytest.approx(loop.closed(point, 8.0).tokens_per_s, rel=0.15)
    assert expect(Point(32, 64, 8)) < 0.8 * expect(Point(32, 512, 1)), "no room for so many newcomers at once"


def test_a_handful_of_steps_lets_expect_nothing() -> None:
    assert expectation([], mean_prompt=10, mean_output=10) is None
