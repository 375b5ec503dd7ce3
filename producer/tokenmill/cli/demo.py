"""`tokenmill demo`: all of it on this machine. A server, a worker process, live answers, a bulk run, a summary."""

import asyncio
import json
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

import click

from tokenmill.bulk.execute import execute
from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.progress import choose_view
from tokenmill.bulk.report import RunReport
from tokenmill.bulk.spec import InputSpec, RunSpec
from tokenmill.cli.checks import look_at_model
from tokenmill.cli.exits import Exit, fail, with_exit_codes
from tokenmill.cli.local import LocalWorker, LocalWorkerError, local_worker
from tokenmill.cli.screens import AnswerScreen, can_redraw, choose_screen
from tokenmill.client import AsyncClient, Client
from tokenmill.wire.keys import Keys, Lane

QUESTIONS = (
    "Why is the sky blue?",
    "Give me three tips for a good night's sleep.",
    "Write a short story about a robot who finds a garden.",
)
STREAM_TOKENS = 72  # long enough to watch, short enough for two cores
BULK_TOKENS = 48
NUM_SHOWN_ROWS = 3
SHOWN_CHARS = 72


@click.command(
    help=with_exit_codes(
        """Start a server and a worker with a small real model on this machine, and show the main job.

        Three answers are streamed at once, then a bulk run answers a small prompt set. Everything ends with the
        command; nothing is left behind. It takes about a minute the first time and less after that.

        \b
        tokenmill demo
        tokenmill demo --model echo       without a model: random words, instantly
        """,
        "0 all of it worked, 1 something failed, 2 something is not installed, 130 interrupted",
    )
)
@click.option("--model", default="smollm2", show_default=True, metavar="M", help="Hub id, folder, GGUF file, or echo.")
def demo(model: str) -> None:
    _check_installed(model)
    with tempfile.TemporaryDirectory(prefix="tokenmill-demo-") as folder:
        try:
            report = _show_all(model, Path(folder))
        except LocalWorkerError as error:
            advice = look_at_model(model).advice
            fail(f"{error}; {advice}" if advice else str(error))
    if report.num_failed:
        fail(f"{report.num_failed} rows failed")


def _show_all(model: str, folder: Path) -> RunReport:
    click.echo(f"1. Start a Valkey server and a worker process with {model}, both on this machine.")
    started_s = time.monotonic()
    with local_worker(model, {}, folder=folder) as worker:
        worker.wait_ready()
        click.echo(f"   The worker takes requests after {time.monotonic() - started_s:.1f} s.")
        click.echo("\n2. Send three requests at once: one batch answers them, each streams from its own result key.\n")
        streamed = _stream(worker.url)
        click.echo("\n3. Run a small data set through the same queue.\n")
        report = _run_bulk(worker, folder / "answers.jsonl")
        _show_rows(folder / "answers.jsonl")
        _summarise(worker.url, streamed, report)
    return report


def _check_installed(model: str) -> None:
    """Said before anything starts: what is missing, and the command that brings it."""
    if find_spec("pydantic_settings") is None:
        fail("the demo runs a worker: pip install 'tokenmill[worker,embedded,bulk]'", Exit.USAGE)
    if model.partition("?")[0] != "echo" and (find_spec("torch") is None or find_spec("transformers") is None):
        fail("a real model needs torch and transformers: pip install 'tokenmill[worker]', or --model echo", Exit.USAGE)
    finding = look_at_model(model)
    if finding.status == "broken":
        fail(finding.detail, Exit.USAGE)
    if finding.status == "warning":
        click.echo(f"tokenmill: {finding.detail} ({finding.advice})", err=True)


@dataclass(frozen=True, slots=True)
class Streamed:
    """What was streamed, for the summary."""

    num_tokens: int
    elapsed_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / max(self.elapsed_s, 1e-9)


def _stream(url: str) -> Streamed:
    screen = choose_screen(QUESTIONS)
    started_s = time.monotonic()
    screen.start()
    try:
        num_tokens = asyncio.run(_stream_all(url, screen))
    finally:
        screen.stop()
    return Streamed(num_tokens, time.monotonic() - started_s)


async def _stream_all(url: str, screen: AnswerScreen) -> int:
    async with AsyncClient(url, partitions=1) as client:
        return sum(await asyncio.gather(*(_stream_one(client, screen, number) for number in range(len(QUESTIONS)))))


async def _stream_one(client: AsyncClient, screen: AnswerScreen, number: int) -> int:
    messages = [{"role": "user", "content": QUESTIONS[number]}]
    job = await client.submit(messages=messages, max_tokens=STREAM_TOKENS, temperature=0.0, id=f"demo-{number + 1}")
    async for delta in job.stream():
        screen.write(number, delta.text)
    completion = await job.result()
    usage = completion.usage
    screen.finish(number, f"{completion.finish_reason}, {usage.completion_tokens} tokens")
    return usage.completion_tokens


def _run_bulk(worker: LocalWorker, out: Path) -> RunReport:
    recipe = Recipe(sampling={"max_tokens": BULK_TOKENS, "temperature": 0.0})
    with as_file(files("tokenmill.cli") / "demo_prompts.jsonl") as prompts:
        spec = RunSpec(input=InputSpec(paths=(str(prompts),)), out=str(out), recipe=recipe)
        view = choose_view(sys.stdout, can_redraw=can_redraw(sys.stdout))
        return execute(spec, queue_factory=worker.connect_queue, view=view)


def _show_rows(out: Path) -> None:
    """The first rows, so that one sees what a line of the output is."""
    lines = out.read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines[:NUM_SHOWN_ROWS]):
        answer = textwrap.shorten(row["text"], SHOWN_CHARS, placeholder=" ...")
        click.echo(f"   {row['custom_id']}: {row['input']['prompt']} -> {answer}")


def _summarise(url: str, streamed: Streamed, report: RunReport) -> None:
    keys = Keys()
    with Client(url, partitions=1) as client:
        waiting = client.statistics().depth
    bulk_rate = report.completion_tokens / max(report.elapsed_s, 1e-9)
    click.echo(
        f"""
What happened
   streamed   {len(QUESTIONS)} answers, {streamed.num_tokens} tokens at {streamed.tokens_per_s:.0f} a second
   bulk       {report.num_done} rows, {report.completion_tokens} tokens at {bulk_rate:.0f} a second
   requests   stream {keys.lane(Lane.NORMAL)} (bulk rows: {keys.lane(Lane.BULK)}), {waiting} waiting now
   answers    stream {keys.result("demo-1")} and so on: one per request, readable from any language

Do it yourself, with a server of your own
   tokenmill worker --model smollm2 --redis redis://localhost:6379/0
   redis-cli XADD '{keys.lane(Lane.NORMAL)}' '*' id hello prompt 'Once upon a time'
   redis-cli XREAD BLOCK 5000 STREAMS '{keys.result("hello")}' 0
   tokenmill submit "Why is the sky blue?" --stream"""
    )
