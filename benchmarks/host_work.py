"""Host work: what a decode step costs beside the model's operations, in microseconds of the engine thread's CPU time.

`engine`    Engine.step over a runner that only hands out known tokens: scheduler, packer, pages, commit, text, events
`runner`    ModelRunner.run around a model that returns at once: the step's tensors, and the sampler around its arg-max
`capacity` and `statistics`, which the worker's loop and its metrics ask for; `many waiting`: 10,000 requests

Caveats: CPU time of one thread, so other jobs disturb it little, but a slower clock shows. The runner's part runs the
arg-max over a vocabulary of 64, since its time over a real one is the model's; the tensors are the named backend's.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from tokenmill_worker.engine import checkpoint, loading
from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.api import EngineConfig, EngineRequest, SamplingParams
from tokenmill_worker.engine.attention import backend_named
from tokenmill_worker.engine.batch import Draws, PackedBatch, Tokenizer
from tokenmill_worker.engine.engine import Engine
from tokenmill_worker.engine.model_runner import ModelRunner
from tokenmill_worker.engine.tokenizer import HFTokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.report import print_json
from tests.support.prompts import load_prompts

CONTEXT = 100  # tokens of each prompt
WARM_UP = 20  # steps
NUM_WAITING = 10_000
PAGES_PER_ROW = 70  # prompt and max_tokens
KINDS: dict[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=2048, ignore_eos=True),
    "greedy + stop strings": SamplingParams(temperature=0.0, max_tokens=2048, ignore_eos=True, stop=("\n\n", "####")),
    "sampled": SamplingParams(temperature=0.8, top_p=0.95, max_tokens=2048, ignore_eos=True),
}


class NullRunner:
    """Hands out the tokens of a text, each row from a place of its own."""

    max_model_len, device, fingerprint = 8192, "cpu", "null"

    def __init__(self, token_ids: Sequence[int], *, vocab_size: int, num_pages: int) -> None:
        self.vocab_size, self.num_pages = vocab_size, num_pages
        self._token_ids = np.array(token_ids, dtype=np.int64)
        self._num_runs = 0
        self.last: PackedBatch | None = None

    def run(self, batch: PackedBatch) -> Draws:
        self._num_runs += 1
        self.last = batch
        start = self._num_runs % 500
        return Draws(self._token_ids[start : start + 7 * len(batch.samples) : 7])


def smollm2_tokenizer() -> HFTokenizer:
    folder = checkpoint.locate("smollm2", cache_dir=loading.cache_dir(EngineConfig()))
    return HFTokenizer(cast("Any", loading._load_tokenizer(folder, trust_remote_code=False)), eos_token_ids=[2])


def running_engine(tokenizer: Tokenizer, params: SamplingParams, *, num_rows: int, num_waiting: int = 0) -> Engine:
    """All rows decoding, and others behind them."""
    text = tokenizer.encode("\n".join(load_prompts(60).texts))
    num_pages = num_rows * PAGES_PER_ROW
    runner = NullRunner(text[:500] + text[: 7 * num_rows], vocab_size=tokenizer.vocab_size, num_pages=num_pages)
    config = EngineConfig(max_num_seqs=num_rows, max_num_batched_tokens=max(512, num_rows))
    engine = Engine(config, runner=runner, tokenizer=tokenizer)
    for index in range(num_rows + num_waiting):
        prompt = text[index % 50 : index % 50 + CONTEXT]
        engine.add_request(EngineRequest(request_id=f"{index}", prompt_token_ids=prompt, params=params))
    while engine.statistics().num_running < num_rows or engine.statistics().num_prefill_tokens < num_rows:
        engine.step()
    return engine


def micros(work: Callable[[], object], *, times: int) -> float:
    """Median CPU time of one call on this thread."""
    spent = []
    for turn in range(WARM_UP + times):
        start = time.thread_time_ns()
        work()
        if turn >= WARM_UP:
            spent.append(time.thread_time_ns() - start)
    return median(spent) / 1000


def packed_runner(num_pages: int, backend: str) -> ModelRunner:
    """A real runner and adapter whose model computes nothing and gives the same logits at once."""
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    adapter = Adapter(cast("Any", model), backend_named(cast("Any", backend)))
    runner = ModelRunner(adapter, num_pages=num_pages, max_model_len=8192, fingerprint="null")
    logits = torch.randn(1024, 64)
    model.forward = lambda logits_to_keep, **_: SimpleNamespace(logits=logits[None, : len(logits_to_keep)])
    return runner


def measure(tokenizer: Tokenizer, num_rows: int, *, steps: int, backend: str) -> dict[str, float]:
    figures: dict[str, float] = {}
    for kind, params in KINDS.items():
        engine = running_engine(tokenizer, params, num_rows=num_rows)
        figures[f"engine, {kind}"] = micros(engine.step, times=steps)
        batch = cast("NullRunner", engine._runner).last
        assert batch is not None
        assert len(batch.samples) == num_rows
        runner = packed_runner(num_rows * PAGES_PER_ROW, backend)
        figures[f"runner, {kind}"] = micros(lambda: runner.run(batch), times=steps)  # noqa: B023  # called at once
    crowded = running_engine(tokenizer, KINDS["greedy"], num_rows=num_rows, num_waiting=NUM_WAITING)
    figures["engine, greedy, many waiting"] = micros(crowded.step, times=steps)
    idle = running_engine(tokenizer, KINDS["greedy"], num_rows=num_rows)
    for name, engine in (("", idle), (", many waiting", crowded)):
        figures[f"capacity{name}"] = micros(engine.capacity, times=steps)
        figures[f"statistics{name}"] = micros(engine.statistics, times=steps)
    figures["TOTAL greedy (engine + runner + capacity)"] = (
        figures["engine, greedy"] + figures["runner, greedy"] + figures["capacity"]
    )
    return {name: round(value, 1) for name, value in figures.items()}


def print_figures(columns: dict[int, dict[str, float]]) -> None:
    print(f"{'us of CPU a step':<44}" + "".join(f"{f'{rows} rows':>12}" for rows in columns))
    for name in next(iter(columns.values())):
        print(f"{name:<44}" + "".join(f"{figures[name]:>12.1f}" for figures in columns.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--keep", type=Path, help="write the JSON line to this file")
    args = parser.parse_args()

    torch.set_num_threads(1)  # what other threads did would not be counted
    tokenizer = smollm2_tokenizer()
    columns = {rows: measure(tokenizer, rows, steps=args.steps, backend=args.backend) for rows in args.rows}
    print_figures(columns)
    settings = {"steps": args.steps, "backend": args.backend, "context": CONTEXT}
    line = print_json("host_work", {f"rows_{rows}": figures for rows, figures in columns.items()}, settings)
    if args.keep:
        args.keep.write_text(line + "\n")


if __name__ == "__main__":
    main()
