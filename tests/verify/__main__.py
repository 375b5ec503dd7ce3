"""Runs the whole verification and prints its figures; exits 1 when one of them is not as it must be."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, product, repeat
from typing import Literal

import click
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams, checkpoint, loading
from tokenmill_worker.engine.api import EngineError
from tokenmill_worker.engine.batch import Loaded

from tests.support.prompts import load_prompts
from tests.verify.identity import compare
from tests.verify.invariance import Matrix
from tests.verify.reference import Reference

Backend = Literal["cpu", "sdpa"]
BACKENDS: tuple[Backend, ...] = ("cpu", "sdpa")
OTHERS_SHARE = 4  # the others get a quarter of the prompts and subjects
KV_CACHE_TOKENS = 64 * 640  # room for every row at once: 64 prompts of up to 512 tokens and their answers


@click.command()
@click.option("--num-prompts", default=64, show_default=True, help="Prompts whose tokens are compared to generate().")
@click.option("--max-tokens", default=128, show_default=True, help="Tokens per prompt.")
@click.option("--num-subjects", default=8, show_default=True, help="Prompts that go through the invariance matrix.")
@click.option("--subject-tokens", default=32, show_default=True, help="Tokens per prompt there.")
@click.option("--model", default="smollm2", show_default=True, help="As the worker's --model.")
@click.option("--tier", "tiers", multiple=True, default=("1", "0"), show_default=True, type=click.Choice(["0", "1"]))
@click.option("--backend", "backends", multiple=True, default=BACKENDS, show_default=True, type=click.Choice(BACKENDS))
def verify(
    num_prompts: int,
    max_tokens: int,
    num_subjects: int,
    subject_tokens: int,
    model: str,
    tiers: Sequence[str],
    backends: Sequence[Backend],
) -> None:
    """Float32, greedy and seeded, against transformers' generate() and against itself, in every tier and backend.

    The first tier with the first backend is put through everything. The others' tokens must be generate()'s for a
    quarter of the prompts, and go through the matrix with a quarter of its subjects.
    """
    source, texts = load_prompts(max(num_prompts, num_subjects))
    click.echo(f"prompts from {source.name}")
    complaints: list[str] = []
    judge = Judge(model)
    for share, (tier, backend) in zip(chain([1], repeat(OTHERS_SHARE)), product(tiers, backends), strict=False):
        config = _config(model, tier, backend)
        try:
            loaded = loading.load(config)
        except EngineError as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"model {model} (float32, tier {tier}, {backend}, {loaded.runner.fingerprint})")
        prompts = [loaded.tokenizer.apply_chat_template([{"role": "user", "content": text}]) for text in texts]
        found = _verify_identity(config, loaded, prompts[: num_prompts // share], max_tokens, judge)
        found += _verify_invariance(config, loaded, prompts[: max(2, num_subjects // share)], subject_tokens)
        complaints += [f"tier {tier}, {backend}: {complaint}" for complaint in found]
    for complaint in complaints:
        click.echo(f"FAILED: {complaint}")
    click.echo("verification failed" if complaints else "verified")
    sys.exit(bool(complaints))


def _config(model: str, tier: str, backend: Backend) -> EngineConfig:
    return EngineConfig(
        model=model,
        dtype="float32",
        kv_cache_tokens=KV_CACHE_TOKENS,
        attention_backend=backend,
        tier=1 if tier == "1" else 0,
    )


class Judge:
    """The reference, loaded when it is first asked for: one for all tiers and backends."""

    def __init__(self, model: str) -> None:
        self._model = model

    @cached_property
    def reference(self) -> Reference:
        config = EngineConfig(model=self._model)
        return Reference(checkpoint.locate(config.model, cache_dir=loading.cache_dir(config)))


def _verify_identity(
    config: EngineConfig, loaded: Loaded, prompts: Sequence[list[int]], max_tokens: int, judge: Judge
) -> list[str]:
    start = time.perf_counter()
    engine = Engine(config, runner=loaded.runner, tokenizer=loaded.tokenizer)
    outputs = engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=0))
    engine_s = time.perf_counter() - start
    num_tokens = sum(len(output.token_ids) for output in outputs)
    click.echo(f"engine: {len(prompts)} prompts, {num_tokens} tokens in {engine_s:.0f} s; now generate(), one by one")
    identity = compare(outputs, judge.reference, max_tokens=max_tokens)
    click.echo(
        f"identity: {identity.num_identical} of {len(prompts)} rows token-identical to generate(), "
        f"{identity.num_near_ties} with near-ties; teacher-forced logprobs differ by at most "
        f"{identity.logprob_error:.1e} ({time.perf_counter() - start:.0f} s)"
    )
    return identity.complaints


def _verify_invariance(
    config: EngineConfig, loaded: Loaded, prompts: Sequence[list[int]], max_tokens: int
) -> list[str]:
    matrix = Matrix(loaded, prompts, max_tokens=max_tokens)
    by_reference = loading.load(replace(config, kv_cache_tokens=8192, attention_backend="reference"))
    complaints = []
    for way, different_in in matrix.ways(by_reference).items():
        start = time.perf_counter()
        different = different_in()
        verdict = f"{different} DIFFERENT" if different else "same tokens"
        click.echo(f"invariance: {way:<18} {verdict} ({time.perf_counter() - start:.0f} s)")
        if different:
            complaints.append(f"{different} requests change their tokens: {way}")
    return complaints


if __name__ == "__main__":
    verify()
