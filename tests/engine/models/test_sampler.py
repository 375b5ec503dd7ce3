"""The sampler: draws follow the distribution, filters keep what they must, rows do not know of each other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tokenmill_worker.engine.api import SamplingParams
from tokenmill_worker.engine.batch import Sampled, SampleRow
from tokenmill_worker.engine.sampler import sample
from tokenmill_worker.engine.uniform import uniform
from torch import Tensor

GREEDY = SamplingParams(temperature=0.0)


def row(
    params: SamplingParams,
    *,
    seed: int = 0,
    position: int = 0,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    banned: tuple[int, ...] = (),
) -> SampleRow:
    ids = [np.array(tokens, dtype=np.int32) for tokens in (prompt, output)]
    return SampleRow(0, params, seed, position, ids[0], ids[1], banned)


def draw(logits: Sequence[float] | Tensor, params: SamplingParams, **state: Any) -> Sampled:
    return sample(torch.as_tensor(logits)[None], [row(params, **state)])[0]


def oracle(logits: Tensor, own: SampleRow) -> int:
    """The contract in plain numpy: one row, everything sorted."""
    values, params = logits.double().numpy(), own.params
    order = np.lexsort((np.arange(len(values)), -values))
    weights = np.exp((values[order] - values.max()) / params.temperature)
    weights /= weights.sum()
    kept = np.arange(len(values)) < (params.top_k or len(values))
    kept &= np.cumsum(weights) - weights < params.top_p * weights[kept].sum()
    kept &= weights >= params.min_p * weights[0]
    kept[0] = True
    weights = weights * kept
    return int(order[np.argmax(np.cumsum(weights) > uniform(own.seed, own.position) * weights.sum())])


@pytest.mark.parametrize("vocab_size", [7, 300, 6000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_draws_are_those_of_the_contract(vocab_size: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = (torch.randn(64, vocab_size, generator=generator) * spread * 4).round() / 4  # many equal ones
    pick = np.random.default_rng(vocab_size)
    rows = [
        row(
            SamplingParams(
                temperature=float(pick.choice([0.3, 1.0, 2.5])),
                top_k=int(pick.choice([0, 1, 5, 256, 257, 5000])),
                top_p=float(pick.choice([1.0, 0.87, 0.31])),
                min_p=float(pick.choice([0.0, 0.031])),
            ),
            seed=int(pick.integers(2**62)),
            position=index,
        )
        for index in range(len(logits))
    ]
    drawn = [sampled.token_id for sampled in sample(logits, rows)]
    assert drawn == [oracle(own_logits, own) for own_logits, own in zip(logits, rows, strict=True)]


def test_a_hundred_thousand_draws_follow_the_distribution() -> None:
    logits, temperature, num_draws = torch.tensor([2.0, 1.0, 0.5, 0.5, 0.0, -1.0, -2.0, -3.0]), 0.8, 100_000
    params = SamplingParams(temperature=temperature)
    rows = [row(params, seed=index // 100, position=index % 100) for index in range(num_draws)]
    drawn = [sampled.token_id for sampled in sample(logits.expand(num_draws, -1), rows)]
    observed = np.bincount(drawn, minlength=len(logits))
    expected = (logits.double() / temperature).softmax(0).numpy() * num_draws
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    assert chi_square < 24.3  # 7 degrees of freedom, p = 0.001; the draws are fixed by their seeds


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    assert draw([0.0, 3.0, 3.0, 1.0], GREEDY).token_id == 1


def test_a_tiny_temperature_is_greedy() -> None:
    assert draw([0.0, 3.0, 2.999, 1.0], SamplingParams(temperature=1e-40), seed=5).token_id == 1


def test_a_row_draws_the_same_in_any_company() -> None:
    logits = torch.randn(6, 1000, generator=torch.Generator().manual_seed(1))
    rows = [row(SamplingParams(temperature=1.3, logprobs=2), seed=index) for index in range(5)] + [row(GREEDY)]
    together = list(sample(logits, rows))
    backwards = list(sample(logits.flip(0), rows[::-1]))[::-1]
    alone = [sample(logits[index : index + 1], [own])[0] for index, own in enumerate(rows)]
    assert together == backwards == alone


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_row_of_bad_logits_fails_alone(poison: float) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    rows = [row(SamplingParams(), seed=1), row(SamplingParams(logprobs=1), seed=2), row(GREEDY)]
    expected = sample(logits, rows)
    poisoned = logits.clone()
    poisoned[1, 7] = poison
    got = sample(poisoned, rows)
    assert got[1].error is not None
    assert got[1].error.code == "non_finite_logits"
    assert [got[0], got[2]] == [expected[0], expected[2]]


def test_a_row_of_bad_logits_is_noticed_in_every_dtype_and_kind_of_row() -> None:
    rows = [row(GREEDY), row(SamplingParams(), seed=1), row(SamplingParams(logprobs=1)), row(GREEDY)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = torch.randn(4, 70, generator=torch.Generator().manual_seed(3)).to(dtype)
        expected = list(sample(logits, rows))
        assert expected[0].token_id == int(logits[0].float().argmax())
        for bad in range(4):
            poisoned = logits.clone()
            poisoned[bad, 69] = torch.nan
            got = list(sample(poisoned, rows))
            assert got[bad].error is not None
            assert got[:bad] + got[bad + 1 :] == expected[:bad] + expected[bad + 1 :]


def test_a_token_of_probability_zero_is_no_fault() -> None:
    assert draw([-torch.inf, 1.0, -torch.inf], SamplingParams(), seed=3).token_id == 1


def test_banned_tokens_are_never_drawn() -> None:
    assert draw([9.0, 3.0, 2.0], GREEDY, banned=(0,)).token_id == 1
    rows = [row(SamplingParams(), seed=seed, banned=(0,)) for seed in range(40)]
    drawn = sample(torch.tensor([[9.0, 3.0, 2.0]]).expand(40, -1), rows)
    assert {sampled.token_id for sampled in drawn} == {1, 2}


def test_logit_bias_moves_a_token() -> None:
    assert draw([1.0, 2.0, 0.0], SamplingParams(temperature=0.0, logit_bias={2: 5.0})).token_id == 2


def test_repetition_penalty_lowers_what_prompt_and_output_said() -> None:
    params = SamplingParams(temperature=0.0, repetition_penalty=4.0)
    assert draw([4.0, 3.9, 3.0], params, prompt=[0], output=[1]).token_id == 2
    assert draw([-1.0, -2.0], params, prompt=[0, 0]).token_id == 1  # a negative logit gets more negative


def test_presence_penalty_counts_output_once_and_frequency_penalty_every_time() -> None:
    presence = SamplingParams(temperature=0.0, presence_penalty=1.0)
    frequency = SamplingParams(temperature=0.0, frequency_penalty=1.0)
    assert draw([5.0, 3.5], presence, output=[0, 0]).token_id == 0
    assert draw([5.0, 3.5], frequency, output=[0, 0]).token_id == 1
    assert draw([5.0, 3.5], frequency, prompt=[0, 0, 0]).token_id == 0  # the prompt is not output


def test_logprobs_are_those_of_the_raw_distribution() -> None:
    logits = torch.tensor([1.0, 4.0, 2.0, 0.0])
    params = SamplingParams(temperature=0.0, logprobs=2, logit_bias={0: 50.0})
    sampled = draw(logits, params)
    expected = logits.double().log_softmax(0)
    assert sampled.token_id == 0
    assert sampled.logprobs is not None
    assert sampled.logprobs.chosen == pytest.approx(float(expected[0]), abs=1e-6)
    assert [token_id for token_id, _ in sampled.logprobs.top] == [1, 2]
    assert sampled.logprobs.top[0][1] == pytest.approx(float(expected[1]), abs=1e-6)


def test_no_rows_draw_nothing() -> None:
    assert len(sample(torch.empty(0, 10), [])) == 0
