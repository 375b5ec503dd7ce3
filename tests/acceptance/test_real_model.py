"""SmolLM2 in float32, greedy and seeded: a worker killed three times gives the tokens of one that nothing happens to.

Tokens computed again are counted exactly: each worker counts what it draws, and a published token is drawn once.
"""

import time
from pathlib import Path
from typing import Any

import pytest
from tokenmill_worker.engine import Engine, EngineConfig, checkpoint, loading

from tests.acceptance.fleet import Fleet, Load, WorkerProcess, running_fleet
from tests.queue.harness import Bench
from tests.support.prompts import load_prompts
from tests.support.waiting import wait_until
from tests.verify.identity import MOST_NEAR_TIES, NEAR_TIE
from tests.verify.reference import Reference

MODEL, KV_CACHE_TOKENS = "smollm2", 16_384
NUM_REQUESTS, NUM_ROWS, MAX_TOKENS = 50, 16, 48
KILL_AT = (0.15, 0.4, 0.65)  # of all tokens, published
LEASE_S = 2.0
# What a reader has not heard of when the worker dies: two steps within the 50 ms between two flushes (a step of this
# model takes longer than 25 ms), and the step under way.
WINDOW_TOKENS = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]


def test_three_kills_change_no_token_and_cost_little(bench: Bench, tmp_path: Path) -> None:
    config = EngineConfig(model=MODEL, dtype="float32", kv_cache_tokens=KV_CACHE_TOKENS, max_num_seqs=NUM_ROWS)
    load = _load(config)
    start_s = time.monotonic()
    with _fleet(bench, tmp_path) as fleet:
        _run_with_kills(bench, load, fleet)
        results = load.results(bench)
        num_told = sum(len(result.token_ids) for result in results.values())
        num_again = fleet.num_drawn - num_told
    different = [name for name, result in results.items() if result.token_ids != load.token_ids[name]]
    print(
        f"\n{len(different)} of {NUM_REQUESTS} requests differ after {len(KILL_AT)} kills; "
        f"{num_again} of {num_told} tokens drawn again (allowed {len(KILL_AT) * NUM_ROWS * WINDOW_TOKENS}), "
        f"{time.monotonic() - start_s:.0f} s"
    )
    assert len(different) <= MOST_NEAR_TIES * NUM_REQUESTS
    _assert_near_ties(config, load, {name: results[name].token_ids for name in different})
    assert 0 <= num_again <= len(KILL_AT) * NUM_ROWS * WINDOW_TOKENS


def _load(config: EngineConfig) -> Load:
    """With the prompts as token ids, so that nothing but the engine has a say in the answers."""
    engine = Engine(config)
    texts = load_prompts(NUM_REQUESTS).texts
    prompts = [engine.tokenizer.apply_chat_template([{"role": "user", "content": text}]) for text in texts]
    return Load.answered_by(engine, {f"q-{index}": _request(index, prompt) for index, prompt in enumerate(prompts)})


def _request(index: int, prompt: list[int]) -> dict[str, Any]:
    sampling = {"temperature": 0.8, "top_p": 0.95} if index % 2 else {"temperature": 0.0}
    return {"prompt": prompt, "max_tokens": MAX_TOKENS, "seed": index, **sampling}


def _fleet(bench: Bench, folder: Path) -> Any:
    settings = {"dtype": "float32", "kv_cache_tokens": KV_CACHE_TOKENS, "max_num_seqs": NUM_ROWS}
    return running_fleet(bench, folder, model=MODEL, lease_ttl_s=LEASE_S, **settings)


def _run_with_kills(bench: Bench, load: Load, fleet: Fleet) -> None:
    worker = fleet.start()
    load.submit(bench)
    for share in KILL_AT:
        load.wait_published(bench, round(share * load.num_tokens), timeout=300.0)
        _kill_at_the_worst_moment(worker)
        worker = fleet.start()
    load.wait_final(bench, timeout=300.0)
    assert worker.terminate() == 0


def _kill_at_the_worst_moment(worker: WorkerProcess) -> None:
    """A step's tokens have just been drawn, and nobody has heard of them."""
    num_drawn = worker.num_drawn
    wait_until(lambda: worker.num_drawn > num_drawn, description="a step is done", timeout=60.0)
    worker.kill()


def _assert_near_ties(config: EngineConfig, load: Load, answers: dict[str, list[int]]) -> None:
    """Of two tokens whose logits float32 cannot tell apart, either is a right answer."""
    if not answers:
        return
    reference = Reference(checkpoint.locate(config.model, cache_dir=loading.cache_dir(config)))
    for name, token_ids in answers.items():
        expected = load.token_ids[name]
        first = next(i for i, (ours, theirs) in enumerate(zip(token_ids, expected, strict=False)) if ours != theirs)
        logits = reference.forced_logits(load.requests[name]["prompt"], token_ids[: first + 1])[-1]
        assert load.requests[name]["temperature"] == 0.0, f"{name}: another token was drawn"
        assert abs(float(logits[token_ids[first]] - logits[expected[first]])) < NEAR_TIE, f"{name}: no near-tie"
