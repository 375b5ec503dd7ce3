"""The baselines give what greedy generate() gives, and count what they computed."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.baselines import Baseline, load_model, packed, padded, run_static
from tests.engine.models.tiny import PACKABLE, save_model

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14], [3, 4, 5, 6], [60, 61]]
LENGTHS = [2, 5, 9, 1, 4]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    return load_model(save_model(PACKABLE["llama"](), tmp_path_factory.mktemp("llama")), "float32")


@pytest.fixture(scope="module")
def expected(model: torch.nn.Module) -> list[list[int]]:
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]  # an attribute of transformers' class
    answers = []
    for prompt, length in zip(PROMPTS, LENGTHS, strict=True):
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "max_new_tokens": length, "min_new_tokens": length, "eos_token_id": None}
        answers.append(generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist())
    return answers


@pytest.mark.parametrize("baseline", [padded, packed])
def test_a_baseline_answers_as_generate_does(
    model: torch.nn.Module, expected: list[list[int]], baseline: Baseline
) -> None:
    answers, _ = run_static(model, PROMPTS, LENGTHS, slots=3, baseline=baseline)
    assert answers == expected


def test_padding_computes_what_nobody_wants_and_packing_does_not(model: torch.nn.Module) -> None:
    costs = {run: run_static(model, PROMPTS, LENGTHS, slots=3, baseline=run)[1] for run in (padded, packed)}
    useful = sum(map(len, PROMPTS)) + sum(length - 1 for length in LENGTHS)
    assert [cost.num_useful for cost in costs.values()] == [useful, useful]
    assert costs[packed].num_positions == useful
    assert costs[packed].waste == 0
    assert costs[padded].num_positions == (3 * 6 + 3 * 8) + (2 * 4 + 2 * 3)
    assert costs[padded].num_steps == costs[packed].num_steps == 9 + 4


def test_the_checkpoint_is_left_alone(tmp_path: Path) -> None:
    folder = save_model(PACKABLE["llama"](), tmp_path)
    before = sorted(path.name for path in folder.iterdir())
    load_model(folder, "float32")
    assert sorted(path.name for path in folder.iterdir()) == before
