"""What the benchmarks compute from what they measured, and how it is drawn."""

import os
import xml.etree.ElementTree as ET

import pytest
import torch
from torch import nn

from benchmarks.offline.heavy_tailed import parts
from benchmarks.offline.memory import resident_mib
from benchmarks.offline.sweep import ratios
from benchmarks.online import Served, arrivals, figures
from benchmarks.plot import Curve, nice_ceiling, svg
from benchmarks.roofline import Roofline, Shape, grouped


def test_the_parts_multiply_to_the_whole() -> None:
    found = parts(
        {"static padded": 60, "static packed": 30, "ours, static": 20, "ours, continuous": 10, "ours": 5},
    )
    assert found == {"whole": 12, "packing": 3, "scheduling": 2, "kernels": 2, "pack_sequence": 2}


def test_arrivals_come_at_their_rate_and_are_the_same_each_time() -> None:
    times_s = arrivals(2_000, 4.0, seed=3)
    assert times_s == sorted(times_s)
    assert times_s[-1] == pytest.approx(500, rel=0.1)
    assert arrivals(5, 4.0, seed=3) == times_s[:5]


def test_an_answer_in_one_delta_has_no_time_per_token() -> None:
    assert Served(3, 0.1, 3, 0.1).per_token_s is None
    assert Served(11, 0.5, 1, 2.5).per_token_s == pytest.approx(0.2)


def test_online_figures_are_percentiles_in_milliseconds() -> None:
    served = [Served(11, 0.5, 1, 2.5), Served(21, 1.5, 1, 5.5)]
    found = figures(served, 8.0, 2.0)
    assert found["tokens_per_s"] == 4.0
    assert found["first_token_p50_ms"] == 1_000
    assert found["per_token_p99_ms"] == pytest.approx(200)


def test_linears_of_one_input_are_one_shape() -> None:
    linears = {
        "layers.0.attn.q_proj": nn.Linear(4, 8),
        "layers.0.attn.k_proj": nn.Linear(4, 2),
        "layers.0.attn.v_proj": nn.Linear(4, 2),
        "layers.0.attn.o_proj": nn.Linear(8, 4),
        "layers.0.mlp.gate_proj": nn.Linear(4, 6),
        "layers.0.mlp.up_proj": nn.Linear(4, 6),
        "lm_head": nn.Linear(4, 100),
    }
    assert grouped(linears) == [Shape(12, 4), Shape(4, 8), Shape(12, 4), Shape(100, 4)]


def test_the_bound_is_bytes_for_few_tokens_and_flop_for_many() -> None:
    roofline = Roofline([Shape(64, 32), Shape(32, 64)], torch.float32)
    roofline.__dict__.update(bytes_per_s=1_000.0, flop_per_s=100_000.0)  # in place of measuring
    assert roofline.bound_s(1) == pytest.approx(4 * 4_096 / 1_000)
    assert roofline.bound_s(1_000) == pytest.approx(2 * 1_000 * 4_096 / 100_000)


def test_linears_run_in_both_forms() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        assert Roofline([Shape(64, 32)], dtype).linears_s(3) > 0


def test_resident_memory_is_the_second_field_in_pages() -> None:
    assert resident_mib("9 256 1 1 0 1 0") == 256 * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def test_neighbours_are_compared() -> None:
    assert ratios([1.0, 2.0, 3.0]) == [2.0, 1.5]


def test_a_drawing_is_well_formed_and_has_a_dot_for_each_point() -> None:
    points = [(1.0, 10.0), (2.0, 30.0), (256.0, 471.0)]
    root = ET.fromstring(svg("Rate & time", Curve("rows", "tok/s", points)))
    dots = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(dots) == 3
    heights = [float(dot.attrib["cy"]) for dot in dots]
    assert heights == sorted(heights, reverse=True)


def test_axes_end_at_round_numbers() -> None:
    assert [nice_ceiling(value) for value in (0.07, 1, 1.5, 471, 600, 2_100)] == [0.1, 1, 2, 500, 1_000, 2_500]
