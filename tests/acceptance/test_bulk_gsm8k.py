"""SmolLM2 over all questions of GSM8K in float32, greedy: --local and a queue with two workers give the same file."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tokenmill_worker.engine import Engine, EngineConfig, checkpoint, loading

from tests.acceptance.bulk_scene import run_to_the_end, scaled, write_rows
from tests.acceptance.fleet import running_fleet
from tests.queue.harness import Bench
from tests.support.prompts import load_prompts
from tests.verify.identity import MOST_NEAR_TIES, NEAR_TIE
from tests.verify.reference import Reference

NUM_QUESTIONS, MAX_TOKENS = 1_319, 32
MODEL, NUM_ROWS, KV_CACHE_TOKENS = "smollm2", 32, 16_384

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_600)]


def test_local_and_queued_runs_give_the_same_answers(bench: Bench, tmp_path: Path) -> None:
    questions = load_prompts(scaled(NUM_QUESTIONS)).texts
    rows = write_rows(tmp_path / "rows.jsonl", ({"id": n, "question": text} for n, text in enumerate(questions)))
    asked = ("--column", "question", "--max-tokens", MAX_TOKENS, "--temperature", 0)
    local = _answers(rows, tmp_path / "local.jsonl", *asked, "--local", "--model", MODEL, "--dtype", "float32")
    settings = {"model": MODEL, "dtype": "float32", "max_num_seqs": NUM_ROWS, "kv_cache_tokens": KV_CACHE_TOKENS}
    with running_fleet(bench, tmp_path, lease_ttl_s=15.0, **settings) as fleet:
        fleet.start_ready(2)
        queue = ("--redis", bench.url, "--queue", bench.keys.queue)
        queued = _answers(rows, tmp_path / "queued.jsonl", *asked, *queue)
        shares = [len(worker.begun) for worker in fleet.started]
    different = [n for n in range(len(questions)) if local[n]["token_ids"] != queued[n]["token_ids"]]
    print(f"{len(different)} of {len(questions)} answers differ; the two workers began {shares}")
    assert min(shares) > 0.2 * len(questions), "both had their part"
    assert len(different) <= MOST_NEAR_TIES * len(questions)
    _assert_near_ties([(questions[n], local[n]["token_ids"], queued[n]["token_ids"]) for n in different])


def _answers(rows: Path, out: Path, *options: object) -> list[dict[str, Any]]:
    started_s = time.monotonic()
    run_to_the_end(rows, out, *options)
    found = [json.loads(line) for line in out.read_bytes().splitlines()]
    print(f"\n{out.stem}: {len(found)} rows in {time.monotonic() - started_s:.0f} s")
    return found


def _assert_near_ties(pairs: list[tuple[str, list[int], list[int]]]) -> None:
    """Of two tokens whose logits float32 cannot tell apart, either is a right answer."""
    if not pairs:
        return
    config = EngineConfig(model=MODEL, dtype="float32", kv_cache_tokens=KV_CACHE_TOKENS)
    tokenizer = Engine(config).tokenizer
    reference = Reference(checkpoint.locate(MODEL, cache_dir=loading.cache_dir(config)))
    for question, ours, theirs in pairs:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}])
        first = next(i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other)
        logits = reference.forced_logits(prompt, ours[: first + 1])[-1]
        assert abs(float(logits[ours[first]] - logits[theirs[first]])) < NEAR_TIE, f"no near-tie: {question}"
