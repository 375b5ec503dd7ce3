"""What `bulk run --preview` and `--dry-run` show. Knows no files."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import click

from tokenmill.bulk.progress import format_duration
from tokenmill.bulk.rehearsal import Estimate, Preview, Range
from tokenmill.bulk.rows import JSON
from tokenmill.bulk.spec import QueueSpec
from tokenmill.client import Client


def has_workers(url: str, queue: QueueSpec) -> bool:
    with Client(url, queue.name, queue.partitions) as client:
        return bool(client.statistics().workers)


def show_previews(previews: Sequence[Preview], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([asdict(each) for each in previews], ensure_ascii=False))
        return
    for each in previews:
        click.echo(f"row {each.number}: {_state(each)}")
        for line in _lines(each):
            click.echo(f"  {line}")


def _state(each: Preview) -> str:
    if each.num_tokens is not None:
        return f"{each.num_tokens} tokens"
    return f"cannot be asked: {each.reason}" if each.reason else "tokens unknown, since nobody works on this queue"


def _lines(each: Preview) -> list[str]:
    """Messages with their roles, a raw prompt as it is, and what else is asked."""
    asked = dict(each.request or {})
    prompt, messages = asked.pop("prompt", None), asked.pop("messages", None)
    lines = [_turn(turn) for turn in messages] if isinstance(messages, list) else []
    if prompt is not None:
        lines.append(prompt if isinstance(prompt, str) else json.dumps(prompt))
    if asked:
        lines.append(f"with {json.dumps(asked, ensure_ascii=False)}")
    return [part for line in lines for part in line.split("\n")]


def _turn(turn: JSON) -> str:
    if not isinstance(turn, dict):
        return json.dumps(turn, ensure_ascii=False)
    content = turn.get("content")
    return f"{turn.get('role')}: {content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)}"


def show_estimate(estimate: Estimate, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(estimate.describe()))
        return
    click.echo(f"rows        {estimate.num_rows:,}, of which {estimate.num_sampled} were run and {_share(estimate)}")
    click.echo(f"prompts     {_tokens(estimate.prompt_tokens)}")
    click.echo(f"completions {_tokens(estimate.completion_tokens)} at {estimate.tokens_per_s:,.0f} tok/s")
    low, likely, high = (
        format_duration(value) for value in (estimate.seconds.low, estimate.seconds.likely, estimate.seconds.high)
    )
    click.echo(f"time        about {likely} ({low} to {high}) with the workers that are there now")


def _share(estimate: Estimate) -> str:
    bad = f"{estimate.num_bad:,} cannot be read"
    return f"{bad}; {estimate.failing:.0%} of those run failed" if estimate.failing else bad


def _tokens(value: Range) -> str:
    return f"about {value.likely:,.0f} tokens ({value.low:,.0f} to {value.high:,.0f})"
