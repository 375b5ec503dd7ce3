"""The quality benchmark's own arithmetic, and its rows; no model."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.quality import Heard, _rows


def test_a_way_is_compared_with_the_truth() -> None:
    truth = Heard(torch.tensor([-1.0, -2.0]), torch.tensor([4, 5]), [[1, 2], [3]])
    other = Heard(torch.tensor([-1.5, -2.0]), torch.tensor([4, 6]), [[1, 2], [4]])
    assert other.figures(truth) == {
        "perplexity": pytest.approx(math.exp(1.75)),
        "mean_logprob_difference": pytest.approx(0.25),
        "same_likeliest_token": 0.5,
        "same_greedy_answers": 0.5,
    }


def test_a_row_without_an_answer_predicts_its_prompt(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n" + json.dumps({"prompt": "Hello"}) + "\n")
    assert list(_rows(source)) == [("1 + 1?", "2"), ("Hello", "Hello")]
