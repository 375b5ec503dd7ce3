"""A row whose model breaks down fails alone, and leaves nothing behind in the pages that it gives back."""

import numpy as np
import pytest
import torch
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams
from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.api import EngineRequest, ModelError
from tokenmill_worker.engine.attention import AttentionSpec, AttentionStep, KVPages, backend_named
from tokenmill_worker.engine.guard import check
from tokenmill_worker.engine.model_runner import ModelRunner
from tokenmill_worker.engine.tokenizer import NoTokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from tests.engine.models.tiny import PACKABLE, VOCAB, make_model

POISON = 7  # the token whose embedding is NaN
GREEDY = SamplingParams(temperature=0.0, max_tokens=10)


def poisoned_model() -> PreTrainedModel:
    model = make_model(PACKABLE["llama"]())
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    embedding.weight.data[POISON] = torch.nan
    return model


def make_engine(
    model: PreTrainedModel, *, num_pages: int, max_num_batched_tokens: int = 64, backend: str = "sdpa"
) -> Engine:
    adapter = Adapter(model, backend_named(backend))
    runner = ModelRunner(adapter, num_pages=num_pages, max_model_len=256, fingerprint="test")
    config = EngineConfig(max_num_batched_tokens=max_num_batched_tokens)
    return Engine(config, runner=runner, tokenizer=NoTokenizer(vocab_size=VOCAB, eos_token_ids=[]))


def prompt(length: int) -> list[int]:
    token_ids: list[int] = np.random.default_rng(length).integers(POISON + 1, VOCAB, length).tolist()
    return token_ids


def test_a_row_with_nan_logits_fails_and_its_neighbours_go_on() -> None:
    model = poisoned_model()
    sound = [prompt(9), prompt(40)]
    expected = [output.token_ids for output in make_engine(model, num_pages=16).generate(sound, GREEDY)]
    outputs = make_engine(model, num_pages=16).generate([sound[0], [POISON, 3, 4], sound[1]], GREEDY)
    assert [outputs[0].token_ids, outputs[2].token_ids] == expected
    assert outputs[1].finish_reason == "error"
    assert outputs[1].error is not None
    assert outputs[1].error.code == "non_finite_logits"


@pytest.mark.parametrize("backend", ["reference", "sdpa", "cpu"])
def test_what_a_row_of_nan_left_in_pages_does_not_reach_who_gets_them(backend: str) -> None:
    model = poisoned_model()
    expected = make_engine(model, num_pages=4).generate([prompt(9)], GREEDY)[0].token_ids
    engine = make_engine(model, num_pages=4, max_num_batched_tokens=100, backend=backend)
    engine.add_request(EngineRequest(request_id="bad", prompt_token_ids=[POISON] * 110, params=GREEDY))
    engine.step()  # a chunk of NaN lies in every page, and no logits have told of it yet
    engine.drop("bad")
    assert engine.generate([prompt(9)], GREEDY)[0].token_ids == expected


class LeakyBackend:
    """Attends over the whole row as if it were one sequence: what a model without our attention would do."""

    name, note = "leaky", ""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, pages: KVPages, step: AttentionStep, spec: AttentionSpec
    ) -> Tensor:
        query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)[0].transpose(0, 1)


class WindowlessBackend:
    """Forgets the sliding window."""

    name, note = "windowless", ""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, pages: KVPages, step: AttentionStep, spec: AttentionSpec
    ) -> Tensor:
        return backend_named("sdpa").attend(query, key, value, pages, step, spec._replace(window=None))


def test_the_guard_sees_one_sequence_leak_into_another() -> None:
    with pytest.raises(ModelError, match="differ from its own plain forward"):
        check(Adapter(make_model(PACKABLE["llama"]()), LeakyBackend()), window=None, longest=256)


def test_the_guard_sees_a_forgotten_sliding_window() -> None:
    with pytest.raises(ModelError, match="differ from its own plain forward"):
        check(Adapter(make_model(PACKABLE["mistral"]()), WindowlessBackend()), window=16, longest=256)


def test_the_guard_sees_the_same_in_half_precision() -> None:
    model = make_model(PACKABLE["mistral"]())
    nn.Module.to(model, torch.bfloat16)
    check(Adapter(model, backend_named("sdpa")), window=16, longest=256)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}  # float32 was for the check only
    with pytest.raises(ModelError, match="differ from its own plain forward"):
        check(Adapter(model, WindowlessBackend()), window=16, longest=256)
