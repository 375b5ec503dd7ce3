"""SmolLM2 over all questions of GSM8K in float32, greedy: --local and a queue with two workers give the same file."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.bulk_scene import run_to_the_end, scaled, write_rows
from tests.acceptance.fleet import running_fleet
from tests.acceptance.near_ties import assert_same_but_for_near_ties
from tests.queue.harness import Bench
from tests.support.prompts import load_prompts

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
    print(f"the two workers began {shares}")
    assert min(shares) > 0.2 * len(questions), "both had their part"
    # What a row is known by holds the model's name, which one run says and the other leaves to the queue.
    num_different = assert_same_but_for_near_ties(MODEL, map(_nameless, local), map(_nameless, queued))
    print(f"{num_different} of {len(questions)} answers differ")


def _answers(rows: Path, out: Path, *options: object) -> list[dict[str, Any]]:
    started_s = time.monotonic()
    run_to_the_end(rows, out, *options)
    found = [json.loads(line) for line in out.read_bytes().splitlines()]
    print(f"\n{out.stem}: {len(found)} rows in {time.monotonic() - started_s:.0f} s")
    return found


def _nameless(line: dict[str, Any]) -> dict[str, Any]:
    return {**line, "row_hash": line["custom_id"]}
