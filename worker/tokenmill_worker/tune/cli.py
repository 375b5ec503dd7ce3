"""The command `tokenmill tune`: reads what is asked, puts a tuning together from its parts, writes what it found."""

import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from tokenmill_worker.cli import EXIT_FATAL, engine_config
from tokenmill_worker.engine.api import EngineError
from tokenmill_worker.engine.batch import PAGE_SIZE
from tokenmill_worker.engine.engine import Engine
from tokenmill_worker.engine.threads import usable_cores
from tokenmill_worker.settings import SettingsError, WorkerSettings
from tokenmill_worker.tune.budget import Budget
from tokenmill_worker.tune.figures import Targets
from tokenmill_worker.tune.loop import Loop
from tokenmill_worker.tune.machine import machine
from tokenmill_worker.tune.progress import shown
from tokenmill_worker.tune.report import Record, write
from tokenmill_worker.tune.session import SLACK, Goal, NothingMeasuredError, Session, Tuning
from tokenmill_worker.tune.space import Space, space_of
from tokenmill_worker.tune.workload import (
    DEFAULT_OUTPUT_TOKENS,
    DEFAULT_PROMPT_TOKENS,
    Workload,
    WorkloadError,
    dataset_workload,
    random_workload,
)

BUDGET_S = 270.0
RESERVE_S = 2.0  # of the budget, for writing the files and for a step that is under way at the end
ROOM = 1.5  # of the KV pool: answers are not all of the mean length
STATED = (  # settings that are kept, where they were given: the measurement holds for them
    "dtype",
    "device",
    "quantization",
    "max_model_len",
    "kv_cache_tokens",
    "enable_prefix_caching",
    "attention_backend",
    "tier",
    "overlap",
    "cuda_graphs",
    "compile_layers",
    "gpu_memory_utilization",
    "trust_remote_code",
)


class Milliseconds(click.ParamType[Any]):
    """`500ms`, `0.5s`; a bare number is milliseconds."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)?", str(value).strip())
        if found is None or float(found[1]) <= 0:
            self.fail(f"{value!r} is no time: write 500ms or 0.5s", param, ctx)
        return float(found[1]) * (1000 if found[2] == "s" else 1)


class Rates(click.ParamType[Any]):
    """`1,2,4`: requests a second."""

    name = "rates"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            rates = tuple(float(word) for word in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} are no rates: write 1,2,4", param, ctx)
        if not all(0 < rate < float("inf") for rate in rates):
            self.fail("rates are requests a second, above 0", param, ctx)
        return rates


@click.command()
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings to start from; TOML.")
@click.option("--model", metavar="M", help="Hub id, local folder, GGUF file, smollm2, or echo (a fake model).")
@click.option("--dtype", metavar="D", help="auto, bfloat16, float16 or float32.")
@click.option("--device", metavar="D", help="auto, cpu or cuda.")
@click.option("--quantization", metavar="Q", help="w8a8 or w8a16: int8 on a CPU.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("configs/tuned"),
    show_default=True,
    metavar="DIR",
    help="Where the configuration, the report and the picture go.",
)
@click.option("--dataset", type=click.Path(path_type=Path), metavar="F", help="Prompts: .jsonl, .csv, or .txt.")
@click.option("--column", metavar="C", help="Of the dataset; prompt, question, text or messages if not given.")
@click.option("--prompt-tokens", metavar="N", help="122, 16-384, or ~122 (log-normal around it), without a dataset.")
@click.option("--output-tokens", default=DEFAULT_OUTPUT_TOKENS, show_default=True, metavar="N", help="Likewise.")
@click.option("--closed-loop", is_flag=True, help="As many clients as rows, each asks again at once; the default.")
@click.option("--rates", type=Rates(), metavar="R,R", help="Open loop: judged at the highest of these requests/s.")
@click.option("--target-ttft", type=Milliseconds(), metavar="T", help="Most time to the first token (p95), like 500ms.")
@click.option("--target-tpot", type=Milliseconds(), metavar="T", help="Most time per token (p95), like 50ms.")
@click.option("--max-throughput", is_flag=True, help="Latency counts for nothing, not even between equals.")
@click.option("--budget-s", type=click.FloatRange(min=1), default=BUDGET_S, show_default=True, help="Seconds in all.")
@click.option("--most-rows", type=click.IntRange(min=1), metavar="N", help="No more rows in flight than this.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the workload.")
def tune(
    config: Path | None,
    out: Path,
    dataset: Path | None,
    column: str | None,
    prompt_tokens: str | None,
    output_tokens: str,
    closed_loop: bool,
    rates: tuple[float, ...] | None,
    target_ttft: float | None,
    target_tpot: float | None,
    max_throughput: bool,
    budget_s: float,
    most_rows: int | None,
    seed: int,
    **flags: str | None,
) -> None:
    """Measure which settings this model wants on this machine; write them as a file for `tokenmill worker --config`.

    Rows in flight, tokens of a step, how often newcomers are let in, threads: many combinations get a glance each, the
    best a longer look, until the time budget is spent. Beside the configuration there is a report, and a picture of
    throughput against the time that a token takes.

    \b
    Examples:
      tokenmill tune --model smollm2
      tokenmill tune --model smollm2 --target-ttft 500ms --target-tpot 50ms
      tokenmill tune --dataset questions.jsonl --column question --rates 1,2,4

    Exit codes: 0 done, 1 nothing measured or the targets not held, 2 wrong usage.
    """
    budget = Budget(budget_s)
    targets = Targets(target_ttft, target_tpot)
    _refuse_contradictions(
        {"--closed-loop": closed_loop, "--rates": rates},
        {"--max-throughput": max_throughput, "--target-ttft or --target-tpot": targets},
        {"--dataset": dataset, "--prompt-tokens": prompt_tokens},
    )
    if column is not None and dataset is None:
        raise click.UsageError("--column names a column of the --dataset")
    settings = _settings(config, {name: value for name, value in flags.items() if value is not None})
    goal = Goal(targets, 0.0 if max_throughput else SLACK, rates or ())
    space = _space(settings, most_rows)
    try:
        engine = _load(settings, space)
        load_s = budget.spent_s
        try:
            workload = _workload(engine, dataset, column, prompt_tokens, output_tokens, seed)
            tuning = _run(engine, workload, space, goal, budget)
        finally:
            engine.close()
    except (EngineError, WorkloadError) as error:
        _fail(str(error))
    except NothingMeasuredError:
        _fail(f"{budget_s:g} s were over before anything was measured: give more with --budget-s")
    record = Record(
        tuning=tuning,
        model=settings.model,
        device=engine.device,
        workload=workload.description + (f"; arrivals at {max(rates):g} requests/s" if rates else "; closed loop"),
        targets=targets,
        stated={name: getattr(settings, name) for name in STATED if name in settings.model_fields_set},
        machine=machine(engine.device),
        date=time.strftime("%Y-%m-%d"),
        load_s=load_s,
    )
    _finish(record, out)


def _refuse_contradictions(*groups: dict[str, object]) -> None:
    for group in groups:
        if all(group.values()):
            raise click.UsageError(f"{' and '.join(group)} exclude each other")


def _settings(config: Path | None, flags: dict[str, str]) -> WorkerSettings:
    try:
        settings = WorkerSettings.read(config, flags)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    if settings.tensor_parallel_size > 1:
        raise click.UsageError("tune runs one process: set tensor_parallel_size to 1")
    return settings


def _space(settings: WorkerSettings, most_rows: int | None) -> Space:
    space = space_of("cpu" if _is_on_cpu(settings) else "cuda", num_cores=usable_cores())
    return space if most_rows is None else space.within(most_rows=most_rows)


def _is_on_cpu(settings: WorkerSettings) -> bool:
    if settings.model.partition("?")[0] == "echo" or settings.device == "cpu":
        return True
    import torch  # here, so that the echo model needs none

    return not torch.cuda.is_available()


def _load(settings: WorkerSettings, space: Space) -> Engine:
    """With room for the largest point; its limits are lowered as it runs. Targets would make it adapt by itself."""
    click.echo(f"loading {settings.model}", err=True)
    most_rows = max(space.max_num_seqs)
    config = replace(
        engine_config(settings),
        max_num_seqs=most_rows,
        max_num_batched_tokens=max(*space.max_num_batched_tokens, most_rows),
        target_ttft_ms=None,
        target_tpot_ms=None,
        enable_prefix_caching=False,
    )
    return Engine(config)


def _workload(
    engine: Engine, dataset: Path | None, column: str | None, prompt_tokens: str | None, output_tokens: str, seed: int
) -> Workload:
    longest, tokenizer = engine.max_model_len, engine.tokenizer
    if dataset is not None:
        return dataset_workload(dataset, column, output_tokens, tokenizer, max_model_len=longest, seed=seed)
    return random_workload(
        prompt_tokens or DEFAULT_PROMPT_TOKENS,
        output_tokens,
        vocab_size=tokenizer.vocab_size,
        max_model_len=longest,
        seed=seed,
    )


def _run(engine: Engine, workload: Workload, space: Space, goal: Goal, budget: Budget) -> Tuning:
    tokens = ROOM * sum(workload.means())
    fitting = space.within(most_rows=max(1, int(engine.statistics().num_pages * PAGE_SIZE / tokens)))
    loop = Loop(engine, workload, deadline_s=budget.deadline_s - RESERVE_S)
    own = Budget(budget.left_s - RESERVE_S)
    with shown(own, is_terminal=sys.stderr.isatty()) as tell:
        return Session(loop, fitting, goal, own, tell=tell).run()


def _finish(record: Record, out: Path) -> None:
    try:
        paths = write(record, out)
        WorkerSettings.read(paths[0], {})
    except (OSError, SettingsError) as error:
        _fail(str(error))
    chosen = record.tuning.chosen
    click.echo(f"{chosen.point}: {chosen.figures.tokens_per_s:.0f} tok/s, {chosen.figures.token_p50_ms:.1f} ms a token")
    for path in paths:
        click.echo(str(path))
    if record.tuning.is_held is False:
        _fail("no setting that was measured holds the targets; what was written comes nearest")


def _fail(message: str) -> NoReturn:
    click.echo(f"tokenmill: {' '.join(message.split())}", err=True)
    raise click.exceptions.Exit(EXIT_FATAL)
