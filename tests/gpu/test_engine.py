"""The same assertions as on a CPU, on models of real size: generate()'s tokens, whatever happens around them."""

from dataclasses import replace

import pytest
import torch

from benchmarks.gpu import shapes
from tests.gpu.checks import Subject, complaints, generated, greedy, tokens

LENGTHS = (5, 31, 32, 33, 100, 517)
NUM_TOKENS = 48
WAYS: dict[str, dict[str, object]] = {
    "plain loop": {"overlap": False},
    "overlapped": {"overlap": True, "cuda_graphs": False},
    "chunks of 7": {"overlap": True, "max_num_batched_tokens": 23},
    "few pages": {"overlap": True, "kv_cache_tokens": 1024, "enable_prefix_caching": False},
    "sdpa": {"overlap": False, "attention_backend": "sdpa"},
    "tier 1": {"overlap": True, "tier": 1},
}


@pytest.fixture(scope="module", params=["smollm2", "qwen"])
def subject(request: pytest.FixtureRequest, device: torch.device) -> Subject:
    return Subject(shapes.full(), request.param, device)


def test_tokens_are_those_of_generate(subject: Subject) -> None:
    outputs = subject.engine(max_model_len=1024, overlap=True).generate(subject.prompts(LENGTHS), greedy(NUM_TOKENS))
    model = subject.model()
    assert complaints(model, outputs) == []
    same = [out.token_ids == generated(model, out.prompt_token_ids, NUM_TOKENS) for out in outputs]
    assert sum(same) >= len(same) - 1  # a near tie, at most


@pytest.mark.parametrize("way", WAYS)
def test_tokens_do_not_depend_on_what_happens_around_them(subject: Subject, way: str) -> None:
    outputs = subject.engine(max_model_len=1024, **WAYS[way]).generate(subject.prompts(LENGTHS), greedy(NUM_TOKENS))
    assert complaints(subject.model(), outputs) == []


def test_sampled_tokens_are_those_of_the_plain_loop(subject: Subject) -> None:
    params = [replace(greedy(24), temperature=t, top_p=p, seed=7) for t, p in ((0.7, 0.9), (1.0, 1.0), (0.0, 1.0))]
    prompts = subject.prompts(LENGTHS[:3])
    ours, plain = (
        tokens(subject.engine(max_model_len=256, overlap=overlap).generate(prompts, params))
        for overlap in (True, False)
    )
    assert ours == plain


@pytest.mark.parametrize("length", [8_000, 32_000])
def test_long_contexts(subject: Subject, length: int) -> None:
    engine = subject.engine(max_model_len=32_768, overlap=True, kv_cache_tokens=2 * length)
    outputs = engine.generate(subject.prompts([length, 40]), greedy(8))
    assert complaints(subject.model(), outputs) == []
