"""Runs the whole verification and prints its figures; exits 1 when one of them is not as it must be."""

import sys
import time
from collections.abc import Sequence

import click
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams, checkpoint, loading
from tokenmill_worker.engine.api import ModelError
from tokenmill_worker.engine.batch import Loaded

from tests.support.prompts import load_prompts
from tests.verify.identity import compare
from tests.verify.invariance import Matrix
from tests.verify.reference import Reference

KV_CACHE_TOKENS = 64 * 640  # room for every row at once: 64 prompts of up to 512 tokens and their answers


@click.command()
@click.option("--num-prompts", default=64, show_default=True, help="Prompts whose tokens are compared to generate().")
@click.option("--max-tokens", default=128, show_default=True, help="Tokens per prompt.")
@click.option("--num-subjects", default=8, show_default=True, help="Prompts that go through the invariance matrix.")
@click.option("--subject-tokens", default=32, show_default=True, help="Tokens per prompt there.")
@click.option("--model", default="smollm2", show_default=True, help="As the worker's --model.")
def verify(num_prompts: int, max_tokens: int, num_subjects: int, subject_tokens: int, model: str) -> None:
    """Float32, greedy and seeded, against transformers' generate() and against itself."""
    config = EngineConfig(model=model, dtype="float32", kv_cache_tokens=KV_CACHE_TOKENS)
    try:
        loaded = loading.load(config)
    except ModelError as error:
        raise click.ClickException(str(error)) from error
    source, texts = load_prompts(max(num_prompts, num_subjects))
    click.echo(f"model {model} (float32, {loaded.runner.fingerprint}), prompts from {source.name}")
    prompts = [loaded.tokenizer.apply_chat_template([{"role": "user", "content": text}]) for text in texts]
    complaints = _verify_identity(config, loaded, prompts[:num_prompts], max_tokens)
    complaints += _verify_invariance(config, loaded, prompts[:num_subjects], subject_tokens)
    for complaint in complaints:
        click.echo(f"FAILED: {complaint}")
    click.echo("verification failed" if complaints else "verified")
    sys.exit(bool(complaints))


def _verify_identity(config: EngineConfig, loaded: Loaded, prompts: Sequence[list[int]], max_tokens: int) -> list[str]:
    start = time.perf_counter()
    engine = Engine(config, runner=loaded.runner, tokenizer=loaded.tokenizer)
    outputs = engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=0))
    engine_s = time.perf_counter() - start
    num_tokens = sum(len(output.token_ids) for output in outputs)
    click.echo(f"engine: {len(prompts)} prompts, {num_tokens} tokens in {engine_s:.0f} s; now generate(), one by one")
    reference = Reference(checkpoint.locate(config.model, cache_dir=loading.cache_dir(config)))
    identity = compare(outputs, reference, max_tokens=max_tokens)
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
    by_reference = loading.load(
        EngineConfig(model=config.model, dtype="float32", kv_cache_tokens=8192, attention_backend="reference")
    )
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
