"""A small `make verify`: the same checks on the real model, fewer prompts. `make test` installs the weights."""

import pytest
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams, checkpoint, loading
from tokenmill_worker.engine.batch import Loaded

from tests.support.prompts import load_prompts
from tests.verify.identity import compare
from tests.verify.invariance import Matrix
from tests.verify.reference import Reference

NUM_PROMPTS, MAX_TOKENS = 6, 24
NUM_SUBJECTS, SUBJECT_PROMPT, SUBJECT_TOKENS = 2, 40, 5
CONFIG = EngineConfig(dtype="float32", kv_cache_tokens=8192)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return loading.load(CONFIG)


@pytest.fixture(scope="module")
def prompts(loaded: Loaded) -> list[list[int]]:
    source, texts = load_prompts(NUM_PROMPTS)
    print(f"prompts from {source}")  # noqa: T201  # which set ran is part of the result
    return [loaded.tokenizer.apply_chat_template([{"role": "user", "content": text}]) for text in texts]


def test_tokens_and_logprobs_are_those_of_generate(loaded: Loaded, prompts: list[list[int]]) -> None:
    engine = Engine(CONFIG, runner=loaded.runner, tokenizer=loaded.tokenizer)
    outputs = engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, logprobs=0))
    reference = Reference(checkpoint.locate(CONFIG.model, cache_dir=loading.cache_dir(CONFIG)))
    assert compare(outputs, reference, max_tokens=MAX_TOKENS).complaints == []
    assert all(output.text for output in outputs)


def test_tokens_do_not_depend_on_what_happens_around_them(loaded: Loaded, prompts: list[list[int]]) -> None:
    subjects = [prompt[:SUBJECT_PROMPT] for prompt in prompts[:NUM_SUBJECTS]]
    matrix = Matrix(loaded, subjects, max_tokens=SUBJECT_TOKENS)
    by_reference = loading.load(EngineConfig(dtype="float32", kv_cache_tokens=2048, attention_backend="reference"))
    different = {way: count() for way, count in matrix.ways(by_reference).items()}
    assert different == dict.fromkeys(different, 0)
