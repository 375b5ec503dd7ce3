"""The benchmarks of the cost model and of a load step, on the echo model."""

import json
import sys

import pytest

from benchmarks import cost_model, load_step


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_the_cost_models_benchmark_tells_both_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cost_model", "--model", "echo", "--dtype", "auto", "--num-requests", "4"])
    cost_model.main()
    found = last_line(capsys)
    assert found["num_steps"] > 16  # type: ignore[operator]  # a number
    assert {"frozen_median_error", "online_median_error", "floor_median_error", "calibration_s"} <= found.keys()


def test_a_load_steps_benchmark_sets_the_target_beside_static_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--model echo --dtype auto --rate 20 --seconds 0.2 --target-tpot 5 --static 4x64,8x64"
    monkeypatch.setattr(sys, "argv", ["load_step", *arguments.split()])
    load_step.main()
    found = last_line(capsys)
    assert list(found["sides"]) == ["target", "4x64", "8x64"]  # type: ignore[call-overload]  # a mapping
    assert {"p95_of_target", "of_best_static", "is_met"} <= found.keys()


def test_a_verdict_needs_the_target_held_at_nine_tenths_of_the_best_that_holds_it() -> None:
    def side(tokens_per_s: float, p95_ms: float) -> dict[str, float]:
        return {"tokens_per_s": tokens_per_s, "per_token_p95_ms": p95_ms}

    static = [side(100.0, 20.0), side(200.0, 40.0), side(300.0, 60.0)]
    assert load_step.verdict(side(185.0, 44.0), static, 40.0)["is_met"] is True
    assert load_step.verdict(side(170.0, 44.0), static, 40.0)["is_met"] is False
    assert load_step.verdict(side(290.0, 55.0), static, 40.0)["is_met"] is False
    assert load_step.verdict(side(1.0, 10.0), static, 1.0)["of_best_static"] is None
