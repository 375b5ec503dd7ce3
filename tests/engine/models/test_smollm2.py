"""A small `make verify`: the same checks on the real model, fewer prompts. `make test` installs the weights."""

import multiprocessing
from pathlib import Path

import pytest
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams, checkpoint, loading
from tokenmill_worker.engine.batch import Loaded

from tests.verify.identity import compare
from tests.verify.invariance import Matrix
from tests.verify.prompts import load_prompts
from tests.verify.reference import Reference

NUM_PROMPTS, MAX_TOKENS = 6, 24
NUM_SUBJECTS, SUBJECT_TOKENS = 3, 8
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
    matrix = Matrix(loaded, prompts[:NUM_SUBJECTS], max_tokens=SUBJECT_TOKENS)
    by_reference = loading.load(EngineConfig(dtype="float32", kv_cache_tokens=2048, attention_backend="reference"))
    different = {way: count() for way, count in matrix.ways(by_reference).items()}
    assert different == dict.fromkeys(different, 0)


def test_two_processes_that_dequantize_at_once_end_with_one_whole_copy(tmp_path: Path) -> None:
    start = multiprocessing.get_context("spawn")
    both = [start.Process(target=checkpoint.locate, args=("smollm2",), kwargs={"cache_dir": tmp_path}) for _ in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=120)
    assert [process.exitcode for process in both] == [0, 0]
    (folder,) = (tmp_path / "gguf").iterdir()
    assert (folder / "model.safetensors").is_file()
