"""The same work by one process or by several that share the model: under torchrun, rank 0 writes down the answers."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenmill_worker.engine.api import EngineConfig, EngineRequest, SamplingParams
from tokenmill_worker.engine.engine import Engine

from tests.engine.harness import finish

PREFIX = [(11 * index) % 120 + 3 for index in range(40)]  # a page and a part of one
GREEDY = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)

Answers = dict[str, object]  # as JSON has them


def config(folder: Path, num_processes: int) -> EngineConfig:
    """Six rows in six pages, 24 tokens a step: chunks, prefix hits and preemption in a few dozen steps."""
    return EngineConfig(
        model=str(folder),
        dtype="float32",
        device="cpu",
        max_num_seqs=6,
        max_num_batched_tokens=24,
        kv_cache_tokens=192,
        attention_backend="sdpa",
        num_threads=1,
        tensor_parallel_size=num_processes,
    )


def requests() -> list[EngineRequest]:
    """Greedy and seeded rows that begin alike, one of them with two choices and logprobs."""
    drawn = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=30, ignore_eos=True, seed=5)
    params = [GREEDY, drawn, GREEDY, SamplingParams(max_tokens=20, n=2, logprobs=2, ignore_eos=True), drawn, GREEDY]
    return [
        EngineRequest(request_id=f"r{index}", prompt_token_ids=[*PREFIX, *range(3, 4 + 7 * index)], params=own)
        for index, own in enumerate(params)
    ]


def answers(folder: Path, num_processes: int) -> Answers:
    """What everybody was told, and whether the engine had to work for it."""
    engine = Engine(config(folder, num_processes))
    outputs = finish(engine, *requests())
    cut = _cancelled_amid(engine)
    statistics = engine.statistics()
    engine.close()
    return {
        "tokens": {name: [choice.token_ids for choice in own.choices] for name, own in outputs.items()},
        "cancelled after": cut,
        "fingerprint": engine.fingerprint,
        "was preempted": statistics.num_preemptions > 0,
        "had prefix hits": statistics.num_cached_tokens > 0,
        "tensor_parallel_size": engine.computing["tensor_parallel_size"],
    }


def _cancelled_amid(engine: Engine) -> list[int]:
    """The tokens of a request that is cancelled after some steps, beside one that goes on."""
    told: list[int] = []
    for name in ("stays", "leaves"):
        engine.add_request(EngineRequest(request_id=name, prompt_token_ids=PREFIX[:9], params=GREEDY))
    for _ in range(7):
        told += [token for event in engine.step() if event.request_id == "leaves" for token in event.token_ids]
    engine.cancel("leaves")
    while engine.has_work():
        engine.step()
        engine.check_integrity()
    return told


def main(result: Path, num_processes: int, folders: Sequence[str]) -> None:
    torch.set_num_threads(1)
    found: dict[str, Answers] = {}
    for folder in folders:
        try:
            found[folder] = answers(Path(folder), num_processes)
        except SystemExit:  # this process followed; the next model is next
            continue
    if found:
        result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
