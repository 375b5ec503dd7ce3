"""The bare engine as benchmarks drive it: prompts of token ids in, steps timed one by one. Knows no queue."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams
from tokenmill_worker.engine.api import EngineRequest

from benchmarks.workload import Workload

TokenIds = list[int]


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-num-batched-tokens", type=int, default=512)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any field of EngineConfig")


def engine_settings(args: argparse.Namespace, **more: object) -> dict[str, object]:
    """Prefix caching is off unless asked for: the same prompts come back, and a warm cache would hide their prefill."""
    settings: dict[str, object] = {
        "model": args.model,
        "dtype": args.dtype,
        "max_num_seqs": args.max_num_seqs,
        "max_num_batched_tokens": args.max_num_batched_tokens,
        "enable_prefix_caching": False,
        **more,
    }
    return settings | dict(parse_setting(text) for text in args.set)


def parse_setting(text: str) -> tuple[str, object]:
    """`tier=0` is a number, `attention_backend=sdpa` a string: JSON where it is JSON."""
    name, equals, value = text.partition("=")
    if not equals:
        raise SystemExit(f"--set takes NAME=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def load_engine(settings: dict[str, object]) -> Engine:
    return Engine(EngineConfig(**settings))  # type: ignore[arg-type]  # plain values of the command line, checked there


def token_prompts(engine: Engine, work: Workload) -> list[TokenIds]:
    """Through the model's chat template."""
    return [engine.tokenizer.apply_chat_template(messages) for messages in work.messages()]


def exactly(num_tokens: int) -> SamplingParams:
    """Greedy, and never a token more or less."""
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)


def generate(engine: Engine, prompts: Sequence[TokenIds], lengths: Sequence[int]) -> int:
    """All of it to its end; the number of output tokens."""
    outputs = engine.generate(prompts, [exactly(length) for length in lengths])
    return sum(len(output.token_ids) for output in outputs)


class Step(NamedTuple):
    """One step's duration and what it computed."""

    seconds: float
    num_prefill_tokens: int
    num_decode_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run, step by step."""

    seconds: float
    steps: list[Step]
    num_cached_tokens: int

    @property
    def num_prefill_tokens(self) -> int:
        return sum(step.num_prefill_tokens for step in self.steps)

    def decode_steps(self, num_rows: int) -> list[Step]:
        """Those that did nothing but decode, with so many rows."""
        return [step for step in self.steps if step.num_prefill_tokens == 0 and step.num_decode_tokens == num_rows]


def run_steps(engine: Engine, prompts: Sequence[TokenIds], lengths: Sequence[int]) -> Run:
    """All requests at once, each step timed."""
    for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        engine.add_request(
            EngineRequest(request_id=f"run-{index}", prompt_token_ids=prompt, params=exactly(length)),
        )
    steps: list[Step] = []
    cached = engine.statistics().num_cached_tokens
    started_s = time.perf_counter()
    while engine.has_work():
        steps.append(timed_step(engine))
    return Run(time.perf_counter() - started_s, steps, engine.statistics().num_cached_tokens - cached)


def timed_step(engine: Engine) -> Step:
    before = engine.statistics()
    started_s = time.perf_counter()
    engine.step()
    seconds = time.perf_counter() - started_s
    after = engine.statistics()
    return Step(
        seconds,
        after.num_prefill_tokens - before.num_prefill_tokens,
        after.num_decode_tokens - before.num_decode_tokens,
    )
