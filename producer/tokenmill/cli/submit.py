"""`tokenmill submit`: one prompt out, its answer on the screen. Knows options and printing, and the client."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from tokenmill.cli.exits import fail, with_exit_codes
from tokenmill.cli.hints import lacks_chat_template, warn_when_nobody_works
from tokenmill.cli.options import json_option, queue_options, sampling_of, sampling_options
from tokenmill.client import Client, Job
from tokenmill.wire.errors import ResultTimeoutError
from tokenmill.wire.messages import Completion, Delta


@click.command(
    help=with_exit_codes(
        """Send one prompt and print the answer. PROMPT `-` reads it from standard input.

        \b
        tokenmill submit "Why is the sky blue?" --stream --max-tokens 64
        git diff | tokenmill submit - --temperature 0 --json | jq -r .text

        The prompt is sent as one user message, for the model's chat template to wrap; --raw, or a model
        without a template, takes it as it is.
        Interrupted or timed out, the request is cancelled. With --json --stream, each line is one JSON object:
        deltas, then the completion.
        """
    )
)
@click.argument("prompt")
@click.option("--stream", "is_streamed", is_flag=True, help="Print the answer while it is written.")
@sampling_options
@click.option(
    "--id", "request_id", metavar="ID", help="The request's id; the same id and body again gives the same answer."
)
@click.option("--priority", type=click.Choice(["high", "normal", "bulk"]), default="normal", show_default=True)
@click.option("--delay", "delay_s", type=click.FloatRange(min=0), metavar="S", help="Queue it in S seconds.")
@click.option("--durable", is_flag=True, help="Wait until the server has it on disk, or on a replica; say which.")
@click.option("--model", metavar="M", help="A name that the queue serves.")
@click.option("--raw", "is_raw", is_flag=True, help="Send the prompt as it is, without the model's chat template.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Seconds to wait."
)
@queue_options
@json_option
def submit(redis_url: str, queue: str, partitions: int, **options: Any) -> None:
    with Client(redis_url, queue, partitions) as client:
        statistics = client.statistics()
        is_raw = options["is_raw"] or lacks_chat_template(statistics)
        job = client.submit(**_request(options, is_raw=is_raw), durable=options["durable"])
        _tell_durability(job)
        try:
            warn_when_nobody_works(statistics)
            completion = _show(job, options)
        except (KeyboardInterrupt, ResultTimeoutError):
            job.cancel()
            raise
    if completion.finish_reason in ("cancelled", "expired"):
        fail(f"the request was {completion.finish_reason}")


def _tell_durability(job: Job) -> None:
    """On stderr: the answer alone is on stdout."""
    if job.durability is not None:
        click.echo(f"accepted as {job.id}, kept in: {job.durability}", err=True)


def _request(options: Mapping[str, Any], *, is_raw: bool) -> dict[str, Any]:
    text = sys.stdin.read() if options["prompt"] == "-" else options["prompt"]
    prompt = {"prompt": text} if is_raw else {"messages": [{"role": "user", "content": text}]}
    fields = {
        "id": options["request_id"],
        "priority": options["priority"],
        "model": options["model"],
        "delay_s": options["delay_s"],
    }
    return {**prompt, **sampling_of(options), **fields}


def _show(job: Job, options: Mapping[str, Any]) -> Completion:
    """Prints the answer in the form that was asked for, and gives it back."""
    as_json, timeout_s = options["as_json"], options["timeout_s"]
    started_s = time.monotonic()
    if options["is_streamed"]:
        for delta in job.stream(timeout=timeout_s):
            _show_delta(delta, as_json=as_json)
    completion = job.result(timeout=_left(timeout_s, started_s))
    if as_json:
        click.echo(json.dumps(_as_json(completion), ensure_ascii=False))
    else:
        click.echo("" if options["is_streamed"] else completion.text)
    return completion


def _left(timeout_s: float | None, started_s: float) -> float | None:
    return None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - started_s))


def _show_delta(delta: Delta, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"type": "delta", **delta.model_dump(exclude_none=True)}, ensure_ascii=False))
        return
    if delta.is_restart:  # another model version took over: what was printed is not part of the answer
        click.echo("\n--- started again by another worker ---")
    click.echo(delta.text, nl=False)


def _as_json(completion: Completion) -> dict[str, object]:
    return {
        "type": "completion",
        "id": completion.request_id,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "usage": completion.usage.model_dump(),
        "timings": completion.timings.model_dump(exclude_none=True),
    }
