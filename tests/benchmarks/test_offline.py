"""The offline benchmarks' work, and how they count it; on the echo engine, which computes nothing."""

import json
from pathlib import Path

import pytest
from tokenmill_worker.engine import Engine, EngineConfig

from benchmarks.engines import exactly, generate, load_engine, parse_setting, run_steps, token_prompts
from benchmarks.offline.long_context import measure
from benchmarks.offline.parts import ModelClock
from benchmarks.offline.throughput import print_run
from benchmarks.workload import FEW_LENGTHS, few_lengths, long_text, shared_prefix, workload
from tests.engine.models.tiny import PACKABLE, save_model


@pytest.fixture
def engine() -> Engine:
    return load_engine({"model": "echo", "max_num_seqs": 4, "enable_prefix_caching": False})


def test_workload_a_is_the_one_that_rivals_are_given() -> None:
    work = workload(64)
    assert work.max_tokens[:8] == [87, 101, 162, 92, 267, 34, 120, 42]
    assert (work.num_output_tokens, min(work.max_tokens), max(work.max_tokens)) == (7_810, 19, 384)
    assert len(set(work.prompts)) > 1
    assert workload(64, seed=1).max_tokens != work.max_tokens


def test_few_lengths_have_all_three_and_are_shuffled() -> None:
    lengths = few_lengths(24).max_tokens
    assert {length: lengths.count(length) for length in FEW_LENGTHS} == dict.fromkeys(FEW_LENGTHS, 8)
    assert lengths != sorted(lengths)


def test_a_system_prompt_comes_first_in_every_chat() -> None:
    messages = shared_prefix(3, system="Be kind.", num_output_tokens=5).messages()
    assert [[message["role"] for message in chat] for chat in messages] == [["system", "user"]] * 3


def test_long_text_is_as_long_as_asked() -> None:
    assert [len(long_text(size)) for size in (10, 100_000)] == [10, 100_000]


def test_settings_are_json_where_they_can_be() -> None:
    assert dict(map(parse_setting, ["tier=0", "attention_backend=sdpa", "max_model_len=null"])) == {
        "tier": 0,
        "attention_backend": "sdpa",
        "max_model_len": None,
    }
    with pytest.raises(SystemExit, match="NAME=VALUE"):
        parse_setting("tier")


def test_a_run_gives_exactly_the_tokens_asked_for(engine: Engine) -> None:
    prompts = token_prompts(engine, workload(6))
    assert generate(engine, prompts, [3, 1, 4, 1, 5, 9]) == 23
    assert exactly(7).is_greedy


def test_steps_are_counted_and_sorted_into_prefill_and_decode(engine: Engine) -> None:
    found = run_steps(engine, [[1, 2, 3], [4, 5, 6, 7]], [5, 5])
    assert found.num_prefill_tokens == 7
    assert sum(step.num_decode_tokens for step in found.steps) == 8  # the first token of each is drawn by its prefill
    assert len(found.decode_steps(2)) == 4
    assert found.num_cached_tokens == 0
    assert not engine.has_work()


def test_the_models_share_of_each_step_is_seen(tmp_path: Path) -> None:
    engine = load_engine({"model": str(save_model(PACKABLE["llama"](), tmp_path)), "kv_cache_tokens": 512})
    with ModelClock(engine) as clock:
        run = run_steps(engine, [[1, 2, 3]], [4])
    assert len(clock.steps) == 4
    assert all(0 < model_s <= step.seconds for model_s, step in zip(clock.steps, run.steps, strict=False))


def test_rows_of_a_long_context_decode_together_once_all_are_read() -> None:
    settings = {"model": "echo", "max_num_seqs": 4, "max_num_batched_tokens": 32, "enable_prefix_caching": False}
    found = measure(load_engine(settings), context=200, num_rows=4)
    assert (found["context"], found["num_rows"]) == (200, 4)
    assert found["step_ms"] > 0


def test_cached_tokens_are_those_of_this_run() -> None:
    engine = Engine(EngineConfig(model="echo", max_num_seqs=2))
    prompt = list(range(1, 100))
    assert [run_steps(engine, [prompt], [2]).num_cached_tokens for _ in range(3)] == [0, 96, 96]


def test_a_run_prints_what_compare_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_run("bfloat16", 300, 2.0) == 150.0
    assert json.loads(capsys.readouterr().out)["tokens_per_s"] == 150.0
