"""Unmodified models of many architectures, packed and paged, say what generate() says; the others are refused."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams
from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.api import InvalidRequestError, ModelError
from tokenmill_worker.engine.attention import backend_named
from transformers import GPT2Config

from tests.engine.models.tiny import (
    GPT2_SIZES,
    LONGROPE_ORIGINAL,
    PACKABLE,
    REFUSED,
    VOCAB,
    WINDOW,
    llama4_chunked,
    make_model,
    phi3_longrope,
    save_model,
)
from tests.verify.reference import Reference

MAX_TOKENS = 20
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)


def random_prompts(*lengths: int) -> list[list[int]]:
    draw = np.random.default_rng(7)
    return [draw.integers(3, VOCAB, length).tolist() for length in lengths]


def engine_for(
    folder: Path,
    *,
    max_num_batched_tokens: int = 24,
    max_model_len: int | None = 256,
    tier: Literal["auto", 0, 1] = "auto",
) -> Engine:
    config = EngineConfig(
        model=str(folder),
        tier=tier,
        dtype="float32",
        max_num_seqs=4,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        kv_cache_tokens=2048,
    )
    return Engine(config)


def generated(folder: Path, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    # Eager is each model's own arithmetic: the default of transformers 5.17 for gemma2, sdpa, leaves its softcap out.
    reference = Reference(folder, attention="eager")
    return [reference.generate(prompt, max_tokens=MAX_TOKENS, ignore_eos=True) for prompt in prompts]


@pytest.mark.parametrize("tier", [0, 1])
@pytest.mark.parametrize("architecture", sorted(PACKABLE))
def test_batched_chunked_and_paged_tokens_are_those_of_generate(
    architecture: str, tier: Literal[0, 1], tiny_checkpoint: Callable[[str], Path]
) -> None:
    folder = tiny_checkpoint(architecture)
    prompts = random_prompts(1, 5, 40, 33, 17, 64)
    assert len(prompts[-1]) > WINDOW
    engine = engine_for(folder, tier=tier)
    outputs = [output.token_ids for output in engine.generate(prompts, GREEDY)]
    engine.check_integrity()
    assert outputs == generated(folder, prompts)
    assert len({token for output in outputs for token in output}) > 4  # a model that repeats itself proves nothing


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss", "mistral"])
@pytest.mark.parametrize("max_num_batched_tokens", [1, 7, 512])
def test_the_chunk_size_does_not_change_tokens(
    architecture: str, max_num_batched_tokens: int, tiny_checkpoint: Callable[[str], Path]
) -> None:
    folder = tiny_checkpoint(architecture)
    prompts = random_prompts(37, 50)
    outputs = engine_for(folder, max_num_batched_tokens=max_num_batched_tokens).generate(prompts, GREEDY)
    assert [output.token_ids for output in outputs] == generated(folder, prompts)


@pytest.mark.parametrize("architecture", ["llama", "gemma3n", "mixtral"])
def test_half_precision_models_pass_the_guard_and_run(
    architecture: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    engine = Engine(EngineConfig(model=str(tiny_checkpoint(architecture)), dtype="bfloat16", kv_cache_tokens=1024))
    outputs = engine.generate(random_prompts(5, 40, 9, 12, 3), GREEDY)
    assert [len(output.token_ids) for output in outputs] == [MAX_TOKENS] * 5


def test_layers_that_share_keys_share_their_pages(tiny_checkpoint: Callable[[str], Path]) -> None:
    adapter = Adapter(make_model(PACKABLE["gemma3n"]()), backend_named("sdpa"))
    assert len(adapter.layers) == 4  # of six, two attend to the keys of others


@pytest.mark.parametrize("architecture", sorted(REFUSED))
def test_a_model_that_cannot_run_packed_is_refused_with_the_reason(architecture: str, tmp_path: Path) -> None:
    config, reason = REFUSED[architecture]
    with pytest.raises(ModelError, match=reason):
        engine_for(save_model(config(), tmp_path))


def test_a_model_with_few_positions_is_served_up_to_its_last_one(tmp_path: Path) -> None:
    folder = save_model(GPT2Config(**GPT2_SIZES, n_positions=24), tmp_path)
    engine = engine_for(folder, max_model_len=None)
    prompts = random_prompts(4, 2)
    assert [output.token_ids for output in engine.generate(prompts, GREEDY)] == generated(folder, prompts)
    with pytest.raises(InvalidRequestError):
        engine.validate(random_prompts(24)[0], GREEDY)


def test_longrope_is_served_only_where_neighbours_cannot_change_its_factors(tmp_path: Path) -> None:
    folder = save_model(phi3_longrope(), tmp_path)
    engine = engine_for(folder, max_model_len=None)
    assert engine.max_model_len == LONGROPE_ORIGINAL
    prompts = random_prompts(4, 40)
    outputs = engine.generate(prompts, GREEDY)
    assert [output.token_ids for output in outputs] == generated(folder, prompts)
    with pytest.raises(ModelError, match="longrope"):
        engine_for(folder, max_model_len=LONGROPE_ORIGINAL + 1)


def test_chunked_attention_is_served_only_within_its_first_chunk(tmp_path: Path) -> None:
    folder = save_model(llama4_chunked(), tmp_path)
    assert engine_for(folder, max_model_len=None).max_model_len == 96
    with pytest.raises(ModelError, match="chunks"):
        engine_for(folder, max_model_len=97)
