"""The report and the picture of a run: what they say, and how much memory they may take."""

import json
import random
from xml.etree import ElementTree

import pytest
from tokenmill.bulk.picture import draw, nice_ceiling, time_ticks
from tokenmill.bulk.progress import Tally
from tokenmill.bulk.recorder import MAX_MOMENTS, Latencies, Moment, Timeline
from tokenmill.bulk.report import Ending, RunReport, as_text


def report(*, num_failed: int = 0, ending: Ending = "complete", out: str = "a/out.jsonl") -> RunReport:
    return RunReport(
        num_rows=10,
        num_skipped=3,
        num_done=5,
        num_failed=num_failed,
        prompt_tokens=200,
        completion_tokens=1_000,
        cached_tokens=50,
        finish_reasons={"length": 2, "stop": 3},
        elapsed_s=2.0,
        latency_s={"p50": 0.5, "p99": 1.25},
        started_at="2026-11-23T12:00:00+00:00",
        out=out,
        errors="a/out.errors.jsonl" if num_failed else None,
        ending=ending,
    )


def test_the_text_has_every_figure() -> None:
    text = as_text(report(num_failed=2))
    for part in (
        "10: 5 done, 3 done before, 2 failed",
        "2.5 rows/s",
        "500 tok/s",
        "25%",
        "length 2, stop 3",
        "p99 1.25",
    ):
        assert part in text


def test_a_run_that_stopped_says_what_is_missing() -> None:
    text = as_text(report(ending="too_many_errors", num_failed=1))
    assert "too many errors" in text
    assert "1 missing" in text


def test_the_json_has_the_rates() -> None:
    told = json.loads(json.dumps(report().describe()))
    assert (told["rows_per_s"], told["tokens_per_s"], told["num_done"]) == (2.5, 500.0, 5)


def test_percentiles_are_right_to_two_percent() -> None:
    latencies, draws = Latencies(), random.Random(0)
    exact = sorted(draws.lognormvariate(0, 1) for _ in range(10_000))
    for seconds in exact:
        latencies.add(seconds)
    told = latencies.percentiles()
    assert told["p50"] == pytest.approx(exact[5_000], rel=0.03)
    assert told["p99"] == pytest.approx(exact[9_900], rel=0.03)
    assert told["max"] == pytest.approx(exact[-1], abs=1e-3)


def test_no_rows_have_no_percentiles() -> None:
    assert Latencies().percentiles() == {}


def test_a_long_run_keeps_a_bounded_number_of_moments_over_its_whole_length() -> None:
    now_s = [0.0]
    timeline = Timeline(clock=lambda: now_s[0])
    for _ in range(100_000):
        timeline.look(Tally(num_rows=1))
        now_s[0] += 0.3
    timeline.look(Tally(num_rows=1), is_last=True)
    assert MAX_MOMENTS / 3 < len(timeline.moments) <= MAX_MOMENTS + 1
    assert timeline.moments[0].s == 0.0
    assert timeline.moments[-1].s == pytest.approx(30_000, rel=0.01)


def test_the_picture_is_one_document_with_both_curves_and_both_schemes() -> None:
    moments = [Moment(s, 10 * s, 0, 100 * s, 64, 128) for s in range(300)]
    picture = draw(report(num_failed=2, out="a/<out>&.jsonl"), moments)
    root = ElementTree.fromstring(picture)
    styles = [element.get("class") for element in root.iter()]
    assert {"rate", "flight", "window", "failed"} <= set(styles)
    assert 1 <= styles.count("rate") <= 121
    assert "prefers-color-scheme: dark" in picture
    assert "&lt;out&gt;&amp;.jsonl" in picture


@pytest.mark.parametrize("moments", [[], [Moment(0.0, 0, 0, 0, 0, 0)], [Moment(0.0, 0, 0, 0, 0, 0)] * 2])
def test_a_run_too_short_to_draw_gives_an_empty_picture(moments: list[Moment]) -> None:
    ElementTree.fromstring(draw(report(), moments))


def test_scales_are_round() -> None:
    assert [nice_ceiling(value) for value in (0, 7, 100, 130, 6_100)] == [1, 8, 100, 160, 8_000]
    assert time_ticks(12.0) == [0, 2, 4, 6, 8, 10, 12]
    assert len(time_ticks(1e6)) <= 9
