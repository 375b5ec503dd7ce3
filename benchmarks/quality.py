"""What a quantization costs in quality, on GSM8K: python -m benchmarks.quality [--num-answers 32] [--num-greedy 16]

Each way of computing is compared with float32: the answers of the data set, teacher-forced (log-probabilities of the
answer's tokens, the likeliest token of each position, perplexity), and greedy answers of our own.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams, loading
from tokenmill_worker.engine.batch import PAGE_SIZE, Loaded, PackedBatch
from torch import Tensor

from benchmarks.report import RESULTS, print_json
from tests.support.prompts import load_prompts

WAYS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "w8a16": {"dtype": "bfloat16", "quantization": "w8a16"},
    "w8a8": {"dtype": "bfloat16", "quantization": "w8a8"},
}


class Exchange(NamedTuple):
    question: str
    answer: str


class Heard(NamedTuple):
    """What one way says of every token of every answer, and in greedy answers of its own."""

    logprobs: Tensor  # [num_tokens] of the answers' own tokens
    likeliest: Tensor  # [num_tokens]
    greedy: list[list[int]]

    def figures(self, truth: "Heard") -> dict[str, float]:
        pairs = zip(self.greedy, truth.greedy, strict=True)
        return {
            "perplexity": math.exp(-float(self.logprobs.mean())),
            "mean_logprob_difference": float((self.logprobs - truth.logprobs).abs().mean()),
            "same_likeliest_token": float((self.likeliest == truth.likeliest).float().mean()),
            "same_greedy_answers": sum(ours == theirs for ours, theirs in pairs) / max(1, len(self.greedy)),
        }


@click.command()
@click.option("--num-answers", default=32, show_default=True, help="Answers of the data set, teacher-forced.")
@click.option("--num-greedy", default=16, show_default=True, help="Greedy answers of the model's own.")
@click.option("--max-tokens", default=128, show_default=True, help="Of a greedy answer.")
@click.option("--model", default="smollm2", show_default=True, help="As the worker's --model.")
@click.option("--keep", is_flag=True, help="Write the JSON line into benchmarks/results.")
def quality(num_answers: int, num_greedy: int, max_tokens: int, model: str, keep: bool) -> None:
    source, exchanges = _exchanges(num_answers)
    truth, figures = None, {}
    print(f"{'':<10}{'perplexity':>12}{'mean |d|':>10}{'same token':>12}{'same answer':>13}")
    for name, way in WAYS.items():
        heard = _hear(EngineConfig(model=model, kv_cache_tokens=16384, **way), exchanges, num_greedy, max_tokens)
        truth = truth or heard
        own = figures[name] = heard.figures(truth)
        print(f"{name:<10}{'{:>12.4f}{:>10.4f}{:>12.4f}{:>13.3f}'.format(*own.values())}", flush=True)
    settings = {"model": model, "source": source, "num_answers": len(exchanges), "num_greedy": num_greedy}
    line = print_json("quality", {"ways": figures}, {**settings, "max_tokens": max_tokens})
    if keep:
        (RESULTS / f"quality_{model}_cpu.json").write_text(line + "\n")


def _exchanges(num: int) -> tuple[str, list[Exchange]]:
    """Rows with a question and an answer; where the prompts have none, the prompt itself is what is predicted."""
    source = load_prompts(1).source
    return source.name, list(_rows(source))[:num]


def _rows(source: Path) -> Iterator[Exchange]:
    for line in source.read_text("utf-8").splitlines():
        row = json.loads(line)
        question = row.get("question") or row["prompt"]
        yield Exchange(question, row.get("answer") or question)


def _hear(config: EngineConfig, exchanges: Sequence[Exchange], num_greedy: int, max_tokens: int) -> Heard:
    loaded = loading.load(config)
    prompts = [loaded.tokenizer.apply_chat_template([{"role": "user", "content": own.question}]) for own in exchanges]
    engine = Engine(config, runner=loaded.runner, tokenizer=loaded.tokenizer)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    greedy = [output.token_ids for output in engine.generate(prompts[:num_greedy], params)]
    parts = [_forced(loaded, prompt, own.answer) for prompt, own in zip(prompts, exchanges, strict=True)]
    logprobs, likeliest = map(torch.cat, zip(*parts, strict=True))
    return Heard(logprobs, likeliest, greedy)


def _forced(loaded: Loaded, prompt: list[int], answer: str) -> tuple[Tensor, Tensor]:
    """Of each token of the answer: its log-probability, and which token was likeliest."""
    target = loaded.tokenizer.encode(answer)
    runner: Any = loaded.runner  # a ModelRunner: batch.Runner, which an engine knows, only samples
    logits = runner._adapter.logits(_one_row([*prompt, *target]), np.arange(len(prompt) - 1, len(prompt + target) - 1))
    logprobs = logits.float().log_softmax(-1)
    return logprobs.gather(1, torch.tensor(target)[:, None])[:, 0], logprobs.argmax(-1)


def _one_row(token_ids: list[int]) -> PackedBatch:
    num_tokens = len(token_ids)
    num_pages = -(-num_tokens // PAGE_SIZE)
    return PackedBatch(
        token_ids=np.array(token_ids, dtype=np.int32),
        positions=np.arange(num_tokens, dtype=np.int32),
        slots=np.arange(num_tokens, dtype=np.int32),
        row_starts=np.array([0, num_tokens], dtype=np.int32),
        context_lens=np.array([num_tokens], dtype=np.int32),
        page_ids=np.arange(num_pages, dtype=np.int32),
        page_starts=np.array([0, num_pages], dtype=np.int32),
    )


if __name__ == "__main__":
    quality()
