"""Both loops on a real, tiny model: what is carried on the device, drawn there and read late, is what is drawn here."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams, device_draws
from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.api import RequestOutput
from tokenmill_worker.engine.attention import backend_named
from tokenmill_worker.engine.batch import SampleRow, Samples
from tokenmill_worker.engine.model_runner import ModelRunner
from tokenmill_worker.engine.sampler import sample
from tokenmill_worker.engine.tokenizer import NoTokenizer
from transformers import PreTrainedModel

from tests.engine.models.tiny import PACKABLE, VOCAB, make_model

POISON = 7  # the token whose embedding is NaN
KINDS = {
    "greedy": SamplingParams(temperature=0.0),
    "sampled": SamplingParams(temperature=1.2),
    "filtered": SamplingParams(temperature=0.9, top_k=9, top_p=0.9, min_p=0.01, seed=4),
    "logprobs": SamplingParams(temperature=0.8, logprobs=3),
    "bias": SamplingParams(logit_bias={5: 4.0, 9: -3.0}, temperature=0.0, logprobs=0),
    "penalties": SamplingParams(temperature=0.7, repetition_penalty=1.3, presence_penalty=0.4),
    "min_tokens": SamplingParams(temperature=1.0, min_tokens=6, stop_token_ids=tuple(range(0, VOCAB, 3))),
    "choices": SamplingParams(temperature=1.1, n=3),
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    model = make_model(PACKABLE["llama"]())
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Embedding)
    embedding.weight.data[POISON] = torch.nan
    return model


def engine_of(model: PreTrainedModel, *, overlap: bool, num_pages: int = 24, budget: int = 64) -> Engine:
    runner = ModelRunner(
        Adapter(model, backend_named("sdpa")), num_pages=num_pages, max_model_len=256, fingerprint="test"
    )
    config = EngineConfig(max_num_seqs=6, max_num_batched_tokens=budget, overlap=overlap)
    return Engine(config, runner=runner, tokenizer=NoTokenizer(vocab_size=VOCAB, eos_token_ids=[2]))


def prompt(length: int) -> list[int]:
    token_ids: list[int] = np.random.default_rng(length).integers(POISON + 1, VOCAB, length).tolist()
    return token_ids


def assert_same(ours: Sequence[RequestOutput], plain: Sequence[RequestOutput]) -> None:
    for one, other in zip(ours, plain, strict=True):
        assert [(c.token_ids, c.finish_reason) for c in one.choices] == [
            (c.token_ids, c.finish_reason) for c in other.choices
        ]
        assert one.error == other.error
        for own, expected in zip(one.choices, other.choices, strict=True):
            assert [p.chosen for p in own.logprobs] == pytest.approx([p.chosen for p in expected.logprobs], abs=1e-5)


@settings(max_examples=8)
@given(
    work=st.lists(
        st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 90), st.integers(1, 24)), min_size=1, max_size=7
    ),
    num_pages=st.sampled_from([10, 24]),
    budget=st.sampled_from([6, 64, 200]),
    num_candidates=st.sampled_from([2, 16, VOCAB]),
    is_one_poisoned=st.booleans(),
)
def test_any_work_ends_as_in_the_plain_loop(
    model: PreTrainedModel,
    work: list[tuple[str, int, int]],
    num_pages: int,
    budget: int,
    num_candidates: int,
    is_one_poisoned: bool,
) -> None:
    params = [replace(KINDS[kind], max_tokens=max(tokens, KINDS[kind].min_tokens)) for kind, _, tokens in work]
    prompts = [prompt(length) for _, length, _ in work]
    if is_one_poisoned and params[0].n == 1:
        prompts[0][-1] = POISON
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_draws.draw, "__kwdefaults__", {"num_candidates": num_candidates})
        ours = engine_of(model, overlap=True, num_pages=num_pages, budget=budget).generate(prompts, params)
    plain = engine_of(model, overlap=False, num_pages=num_pages, budget=budget).generate(prompts, params)
    assert_same(ours, plain)


def rows_of(params: Sequence[SamplingParams], *, seed: int) -> Samples:
    known = np.arange(9, dtype=np.int32)
    return Samples.of([SampleRow(i, own, seed + i, 4, known[:5], known[5:]) for i, own in enumerate(params)])


@settings(max_examples=40)
@given(
    kinds=st.lists(st.sampled_from(sorted(set(KINDS) - {"choices"})), min_size=1, max_size=8),
    seed=st.integers(0, 99),
    spread=st.sampled_from([0.01, 1.0, 6.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_draws_that_stay_on_the_device_are_those_of_the_sampler(
    kinds: list[str], seed: int, spread: float, dtype: torch.dtype
) -> None:
    logits = torch.randn(len(kinds), 3000, generator=torch.Generator().manual_seed(seed)).mul(spread).to(dtype)
    rows = rows_of([KINDS[kind] for kind in kinds], seed=seed)
    expected, ours = sample(logits, rows), device_draws.launch(logits, rows)
    drawn = ours.read()
    assert drawn.token_ids.tolist() == expected.token_ids.tolist()
    assert drawn.logprobs == expected.logprobs
    given_on = ours.token_ids.tolist()
    assert drawn.redrawn == {i for i, token in enumerate(drawn.token_ids.tolist()) if token != given_on[i]}
