"""The report on batch sizes: its loads on a simulated machine, its page from figures that are made up."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from tokenmill_worker.tune.figures import Figures
from tokenmill_worker.tune.space import Point

from benchmarks.batching.loads import WAYS, ArrivalLoop
from benchmarks.batching.page import IMAGES, PAGE, charts, kept_result, text, write_page
from benchmarks.report import RESULTS
from tests.tune.machine import Clock, simulated_loop


def test_joining_at_every_step_answers_sooner_than_waiting_for_a_batch() -> None:
    clock = Clock()
    plain = simulated_loop(clock)
    loop = ArrivalLoop(plain.engine, plain.workload, now=clock.now, wait=clock.wait)
    found = {way: loop.served(way, Point(8, 512, 1), 4.0, 30.0) for way in WAYS}
    assert all(found[way].ttft_p50_ms > 10 * found["continuous"].ttft_p50_ms for way in ("dynamic", "static"))
    assert found["continuous"].tokens_per_s >= found["static"].tokens_per_s
    assert not loop.engine.has_work()


def made_up() -> dict[str, Any]:
    def figures(rate: float, ms: float) -> dict[str, float]:
        return Figures(rate, ms, 2 * ms, ms, ms, ms, 3 * ms, 1.0, 0, 10, 1.0).plain()

    rows = (1, 8, 16, 32, 64)
    return {
        "roofline": {
            "weight_gb_per_s": 25.0,
            "gemm_gflop_per_s": 700.0,
            "balance_rows": 28.0,
        },
        "decode": [{"num_rows": num, "bound_ms": 10.0, "linears_ms": 11.0, "step_ms": 12.0} for num in rows],
        "knee": 32,
        "num_requests": 32,
        "by_rows": [figures(min(num, 32) * 10.0, 12.0 + num) | {"num_rows": num} for num in rows],
        "by_interval": [figures(300 - num, 40) | {"interval": num} for num in (1, 2, 4)],
        "by_flush_interval": [
            {"flush_interval_ms": 50.0, "tokens_per_s": 500.0, "gap_p50_ms": 51.0, "gap_p95_ms": 80.0}
            | {"tokens_per_delta": 1.1}
        ],
        "num_flushed": 64,
        "by_tokens": [figures(300, 40) | {"tokens": num} for num in (64, 512)],
        "by_way": [figures(100, 40) | {"way": way, "load": 0.5, "rate": 2.0} for way in WAYS],
        "by_form": [{"form": "padded (pad_sequence)", "slots": 4, "tokens_per_s": 50.0, "waste": 0.6}],
        "settings": {"model": "smollm2", "dtype": "bfloat16"},
        "machine": {"cpu": "a processor", "git": "abc", "packages": {"torch": "2"}},
    }


def test_the_page_says_where_the_knee_is_and_shows_every_part(tmp_path: Path) -> None:
    write_page(made_up(), page=tmp_path / "page.md", images=tmp_path / "images")
    page = (tmp_path / "page.md").read_text()
    assert "the knee is at 32 rows**, which lies within 16 to 32" in page
    assert "| 32 | 320 | 44 | 88 | 132 |" in page
    pictures = sorted(path.stem for path in (tmp_path / "images").iterdir())
    assert pictures == ["batching_interval", "batching_roofline", "batching_rows", "batching_ways"]
    assert all(f"(images/{name}.svg)" in page for name in pictures)
    for name in pictures:
        ET.fromstring((tmp_path / "images" / f"{name}.svg").read_text())


def test_a_machine_without_a_roofline_gets_a_page_too() -> None:
    assert "on CPUs only" in text(made_up() | {"roofline": None})


def test_the_committed_page_is_that_of_the_committed_result() -> None:
    for kept in RESULTS.glob("batching_smollm2_cpu.json"):
        result = kept_result(kept.stem)
        assert PAGE.read_text() == text(result), "run: python -m benchmarks.batching --render"
        for name, chart in charts(result).items():
            assert (IMAGES / f"{name}.svg").read_text() == chart.svg()
