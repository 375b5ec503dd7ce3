"""`tokenmill tune` as a command, on the echo model and on a tiny random one; and the files that it writes."""

import re
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tokenmill_worker.engine import Engine, EngineConfig
from tokenmill_worker.settings import WorkerSettings
from tokenmill_worker.tune.chart import Chart, Dot, Mark, Series, nice_ceiling
from tokenmill_worker.tune.cli import tune
from tokenmill_worker.tune.loop import Loop
from tokenmill_worker.tune.report import file_stem
from tokenmill_worker.tune.space import Point
from tokenmill_worker.tune.workload import random_workload

from tests.engine.models.tiny import PACKABLE, save_model

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def run(*arguments: object) -> Result:
    return CliRunner(catch_exceptions=False).invoke(tune, [str(argument) for argument in arguments])


def test_it_writes_a_configuration_a_report_and_a_picture(tmp_path: Path) -> None:
    result = run("--model", "echo?step_ms=1", "--most-rows", 8, "--budget-s", 5, "--out", tmp_path / "new" / "folder")
    assert result.exit_code == 0, result.output
    config, report, picture = (Path(line) for line in result.stdout.splitlines()[-3:])
    assert config == tmp_path / "new" / "folder" / "echo-cpu.toml"
    settings = WorkerSettings.read(config, {})
    assert settings.model == "echo?step_ms=1"
    assert 4 <= settings.max_num_seqs <= 8
    assert settings.model_fields_set == set(tomllib.loads(config.read_text()))
    assert re.search(r"^# measured: \d+ output tokens/s", config.read_text(), re.MULTILINE)
    assert f"]({picture.name})" in report.read_text()
    assert "max_num_seqs =" in report.read_text()
    assert len(ET.fromstring(picture.read_text()).findall(f"{SVG}circle")) > 8
    assert re.search(r"^ +\d+ s  rows: 1 rows", result.stderr, re.MULTILINE)


def test_targets_are_written_down_and_missed_ones_end_with_a_failure(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('log_level = "error"\nmax_model_len = 256\n')
    short = ("--prompt-tokens", 4, "--output-tokens", 4, "--most-rows", 4, "--out", tmp_path)
    base = ("--model", "echo", "--config", tmp_path / "base.toml", "--budget-s", 4)
    held = run(*base, *short, "--target-ttft", "50s", "--target-tpot", "5s")
    assert held.exit_code == 0, held.output
    settings = WorkerSettings.read(tmp_path / "echo-cpu.toml", {})
    assert (settings.target_ttft_ms, settings.target_tpot_ms) == (50_000, 5_000)
    assert (settings.max_model_len, settings.log_level) == (256, "info"), "only what the measurement depends on"
    missed = run(*base, *short, "--target-tpot", "0.001ms")
    assert missed.exit_code == 1
    assert "NOT HELD" in (tmp_path / "echo-cpu.toml").read_text()


def test_a_real_model_is_measured_with_threads_that_change(tmp_path: Path) -> None:
    folder = save_model(PACKABLE["llama"](), tmp_path / "tiny")
    config = EngineConfig(
        model=str(folder), device="cpu", attention_backend="sdpa", tier=0, max_num_seqs=4, kv_cache_tokens=2048
    )
    engine = Engine(config)
    loop = Loop(engine, random_workload("8", "8", vocab_size=engine.tokenizer.vocab_size, max_model_len=64))
    before = torch.get_num_threads()
    try:
        assert loop.closed(Point(4, 64, 1, 1), 0.1).tokens_per_s > 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--closed-loop", "--rates", "1"], "exclude each other"),
        (["--max-throughput", "--target-tpot", "5ms"], "exclude each other"),
        (["--dataset", "a.jsonl", "--prompt-tokens", "4"], "exclude each other"),
        (["--column", "question"], "--dataset"),
        (["--rates", "1,none"], "no rates"),
        (["--rates", "0"], "above 0"),
        (["--target-ttft", "soon"], "500ms"),
        (["--dtype", "int3"], "dtype"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_model_is_loaded(arguments: list[str], message: str) -> None:
    result = run("--model", "echo", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output-tokens", "many"], "no distribution"),
        (["--dataset", "absent.jsonl"], "cannot read"),
        (["--quantization", "w8a8"], "means nothing for the echo model"),
    ],
)
def test_what_fails_later_ends_with_one_line_that_says_why(arguments: list[str], message: str) -> None:
    result = run("--model", "echo", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]


def test_a_budget_that_is_gone_after_loading_says_so(tmp_path: Path) -> None:
    result = run("--model", "echo?step_ms=400", "--budget-s", 2.2, "--out", tmp_path)
    assert result.exit_code == 1
    assert "--budget-s" in result.stderr


def test_the_command_is_found_by_its_entry_point() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["tokenmill.commands"]
    assert points["tune"] == f"{tune.callback.__module__}:tune"


def test_files_are_named_after_model_and_device_wherever_the_model_lies() -> None:
    assert file_stem("smollm2", "cpu", None) == "smollm2-cpu"
    assert file_stem("org/name-7b", "cuda:0", None) == "org-name-7b-cuda"
    assert file_stem("/models/My Model", "cpu", "w8a8") == "My-Model-cpu-w8a8"
    assert file_stem("echo?step_ms=2", "cpu", None) == "echo-cpu"


def test_a_chart_is_well_formed_in_both_scales_and_higher_is_more() -> None:
    series = [Series("a & b", [Dot(1, 5), Dot(8, 20, "8 <rows>")]), Series("c", [Dot(2, 7)], is_dashed=True)]
    linear = Chart(title="t", x_label="x", y_label="y", series=series)
    for chart in (linear, Chart(title="t", x_label="x", y_label="y", series=series, x_scale="log2", limits=[(4, "4")])):
        dots = ET.fromstring(chart.svg()).findall(f"{SVG}circle")
        assert [dot.attrib["class"] for dot in dots] == ["fill0", "fill0", "fill1"]
        assert float(dots[0].attrib["cy"]) > float(dots[1].attrib["cy"])
        assert "prefers-color-scheme: dark" in chart.svg()


@pytest.mark.parametrize(("beside", "is_below"), [(Dot(5.0, 6.6), True), (Dot(5.0, 5.2), False)])
def test_a_word_in_the_middle_of_a_mark_covers_no_dot(beside: Dot, is_below: bool) -> None:
    marked = Dot(5.0, 6.0)
    series = [Series("a", [Dot(10.0, 10.0), beside])]
    chart = Chart(title="t", x_label="x", y_label="y", series=series, marks=[Mark(marked, "here", is_centred=True)])
    drawn = ET.fromstring(chart.svg())
    (word,) = (text for text in drawn.findall(f"{SVG}text") if text.text == "here")
    (ring,) = (circle for circle in drawn.findall(f"{SVG}circle") if circle.get("class") == "mark")
    assert (float(word.attrib["y"]) > float(ring.attrib["cy"])) == is_below


def test_a_chart_by_powers_of_two_leaves_out_what_has_no_place_on_it() -> None:
    dots = [Dot(0, 5), Dot(4, 7)]
    chart = Chart(title="t", x_label="x", y_label="y", series=[Series("a", dots)], x_scale="log2")
    assert len(ET.fromstring(chart.svg()).findall(f"{SVG}circle")) == 1


def test_axes_end_at_round_numbers() -> None:
    assert [nice_ceiling(value) for value in (0, 0.07, 1, 471, 600, 2_100)] == [1, 0.075, 1, 500, 600, 2_500]
