"""The engine around a model that is already on the device, and what is measured of it."""

import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import torch
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams, sizing, surgery
from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.api import EngineRequest
from tokenmill_worker.engine.attention import backend_named
from tokenmill_worker.engine.decoder import decoder_for
from tokenmill_worker.engine.guard import check
from tokenmill_worker.engine.model_runner import ModelRunner
from tokenmill_worker.engine.tokenizer import NoTokenizer
from transformers import PreTrainedModel

from benchmarks.gpu.clock import IdleClock, wait_for

TokenIds = list[int]


def engine_of(model: PreTrainedModel, config: EngineConfig, *, max_model_len: int) -> Engine:
    """As `loading.load` puts it together, without a checkpoint. The model belongs to the engine from now on."""
    adapter = Adapter(model, backend_named(config.attention_backend, device=model.device.type))
    if config.tier == 1:
        truth = check(adapter, window=None, longest=max_model_len)
        surgery.operate(adapter, truth.first_step(adapter))
        truth.check(adapter)
    runner = ModelRunner(
        adapter,
        num_pages=sizing.num_pages(adapter, config, max_model_len=max_model_len),
        max_model_len=max_model_len,
        fingerprint="random",
        decoder=decoder_for(adapter, config, max_model_len=max_model_len),
    )
    return Engine(config, runner=runner, tokenizer=NoTokenizer(vocab_size=adapter.vocab_size, eos_token_ids=[]))


def prompts(num: int, length: int, vocab_size: int) -> list[TokenIds]:
    """All different, so that no prefix is shared."""
    draw = torch.randint(0, vocab_size, (num, length), generator=torch.Generator().manual_seed(length))
    token_ids: list[TokenIds] = draw.tolist()
    return token_ids


def exactly(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)


class Decode(NamedTuple):
    step_s: float
    idle_fraction: float | None


def decode(engine: Engine, work: Sequence[TokenIds], *, num_steps: int, device: torch.device) -> Decode:
    """Steps in which every row decodes, from when all do, after a few to warm up."""
    clock = IdleClock(engine._launcher, device)
    engine._launcher = clock
    warm_up = 5
    _add(engine, work, num_steps + warm_up + 10)
    while engine.statistics().num_prefill_tokens < sum(map(len, work)):
        engine.step()
    for _ in range(warm_up):
        engine.step()
    wait_for(device)
    with clock.over():
        started_s = time.perf_counter()
        for _ in range(num_steps):
            engine.step()
        wait_for(device)
        seconds = time.perf_counter() - started_s
    idle = clock.idle_fraction()
    engine.close()
    engine._launcher = clock._launcher
    return Decode(seconds / num_steps, idle)


def _add(engine: Engine, work: Sequence[TokenIds], num_tokens: int) -> None:
    for index, prompt in enumerate(work):
        engine.add_request(EngineRequest(request_id=f"{index}", prompt_token_ids=prompt, params=exactly(num_tokens)))


def job(engine: Engine, work: Sequence[TokenIds], num_tokens: int) -> float:
    """Useful output tokens per second; a few tokens of it first, to warm up."""
    engine.generate(work, exactly(min(4, num_tokens)))
    started_s = time.perf_counter()
    outputs = engine.generate(work, exactly(num_tokens))
    return sum(len(output.token_ids) for output in outputs) / (time.perf_counter() - started_s)


def latency(engine: Engine, work: Sequence[TokenIds], num_tokens: int) -> dict[str, float]:
    """All at once: medians over requests, in milliseconds."""
    _add(engine, work, num_tokens)
    first_s: dict[str, float] = {}
    last_s: dict[str, float] = {}
    started_s = time.perf_counter()
    while engine.has_work():
        events = engine.step()
        now_s = time.perf_counter() - started_s
        for event in events:
            first_s.setdefault(event.request_id, now_s)
            last_s[event.request_id] = now_s
    per_token = [(last_s[name] - first_s[name]) / max(1, num_tokens - 1) for name in first_s]
    return {
        "time_to_first_token_ms": round(1e3 * median(first_s.values()), 3),
        "time_to_first_token_worst_ms": round(1e3 * max(first_s.values()), 3),
        "time_per_token_ms": round(1e3 * median(per_token), 3),
    }


def with_rows(config: EngineConfig, num_rows: int) -> EngineConfig:
    return replace(config, max_num_seqs=num_rows, max_num_batched_tokens=max(config.max_num_batched_tokens, num_rows))
