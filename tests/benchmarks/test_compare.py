"""Comparing with a rival: what is read of its output, and what is made of the rates."""

import json
from pathlib import Path

import pytest

from benchmarks.compare import Command, check_same_work, kept_rounds, last_rate, measure, run_once, summary
from benchmarks.report import Rates


def test_the_last_line_with_a_rate_counts() -> None:
    output = 'loading\n{"tokens_per_s": 1.0}\n{"tokens_per_s": 2.5, "engine": "x"}\n{"other": 1}\n[3]\nbye\n'
    assert last_rate(output) == {"tokens_per_s": 2.5, "engine": "x"}


def test_output_without_a_rate_is_an_error_that_shows_it() -> None:
    with pytest.raises(ValueError, match="out of luck"):
        last_rate("out of luck")


def test_a_side_is_a_name_a_command_and_perhaps_a_folder(tmp_path: Path) -> None:
    assert Command.parse("a=python x.py 'b c' --k=v").words == ["python", "x.py", "b c", "--k=v"]
    assert Command.parse(f"a@{tmp_path}=x").folder == tmp_path
    with pytest.raises(SystemExit, match="NAME=COMMAND"):
        Command.parse("python x.py")


def test_a_side_that_fails_says_why() -> None:
    failing = Command.parse("""bad=python -c "raise SystemExit('no such model')" """)
    with pytest.raises(SystemExit, match=r"bad failed .*no such model"):
        run_once(failing, timeout_s=30)


def test_sides_take_turns_and_their_rates_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    sides = [Command.parse(f"""{name}=python -c 'print(\\'{{"tokens_per_s": {rate}}}\\')'""".replace("\\'", '"""'))
             for name, rate in (("a", 30), ("b", 20))]  # fmt: skip
    rounds: dict[str, list[float]] = {"a": [], "b": []}
    measure(sides, rounds, num_rounds=2, timeout_s=30)
    assert rounds == {"a": [30, 30], "b": [20, 20]}
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["a", "b", "a", "b"]


def test_ratios_are_the_first_side_over_the_others_round_by_round() -> None:
    found = summary([Rates("a", [90.0, 100.0, 30.0]), Rates("b", [30.0, 50.0, 20.0])])
    assert found["ours_over"] == {"b": 2.0}
    assert found["ours_over_each_round"] == {"b": [3.0, 2.0, 1.5]}
    assert found["sides"]["a"]["median"] == 90.0


def test_different_work_is_no_comparison() -> None:
    check_same_work({"a": {"output_tokens": 5}, "b": {"output_tokens": 5}, "c": {}})
    with pytest.raises(SystemExit, match="same work"):
        check_same_work({"a": {"output_tokens": 5}, "b": {"output_tokens": 6}})


def test_rounds_are_appended_to_those_of_the_same_sides_only(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    assert kept_rounds(path, ["a", "b"]) == {"a": [], "b": []}
    path.write_text(json.dumps({"sides": {"a": {"rounds": [1.0]}, "b": {"rounds": [2.0]}}}))
    assert kept_rounds(path, ["b", "a"]) == {"a": [1.0], "b": [2.0]}
    with pytest.raises(SystemExit, match="cannot be appended"):
        kept_rounds(path, ["a", "c"])
