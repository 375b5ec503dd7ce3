"""Options that several commands share, spelled once. The one place of the producer side that reads TOKENMILL_*."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from tokenmill.wire.keys import MAX_PARTITIONS

Function = TypeVar("Function", bound=Callable[..., Any])

DEFAULT_URL = "redis://localhost:6379/0"

redis_option = click.option(
    "--redis",
    "redis_url",
    metavar="URL",
    envvar="TOKENMILL_REDIS_URL",
    default=DEFAULT_URL,
    show_default=True,
    show_envvar=True,
    help="Redis or Valkey: redis[s]://, unix://, redis[s]+sentinel:// or redis[s]+cluster://",
)
queue_option = click.option(
    "--queue",
    metavar="NAME",
    envvar="TOKENMILL_QUEUE",
    default="default",
    show_default=True,
    show_envvar=True,
    help="The queue's name.",
)
partitions_option = click.option(
    "--partitions",
    type=click.IntRange(1, MAX_PARTITIONS),
    metavar="P",
    envvar="TOKENMILL_PARTITIONS",
    default=1,
    show_default=True,
    show_envvar=True,
    help="Of the queue: as many as its workers have.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def queue_options(function: "Function") -> "Function":
    """Which queue: `redis_url`, `queue`, `partitions`."""
    return redis_option(queue_option(partitions_option(function)))


_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Duration(click.ParamType[float]):
    """Seconds, or a number with s, m, h or d."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if not isinstance(value, str):
            return value
        number, unit = (value[:-1], value[-1:]) if value[-1:] in _SECONDS else (value, "s")
        if not re.fullmatch(r"\d{1,9}(\.\d+)?", number):
            self.fail(f"{value!r} is no duration: 90, 90s, 15m, 2h or 7d", param, ctx)
        return float(number) * _SECONDS[unit]


DURATION = Duration()

_SAMPLING_OPTIONS = (
    click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Longest answer, in tokens."),
    click.option(
        "--temperature", type=click.FloatRange(0.0, 100.0), metavar="T", help="0 is greedy; the model's own by default."
    ),
    click.option("--top-p", type=click.FloatRange(0.0, 1.0, min_open=True), metavar="P", help="Nucleus sampling."),
    click.option("--seed", type=int, metavar="S", help="Equal seeds give equal answers."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated."),
)


def sampling_options(function: Function) -> Function:
    """Adds the sampling options; `sampling_of` picks them out of the command's arguments."""
    for option in reversed(_SAMPLING_OPTIONS):
        function = option(function)
    return function


def sampling_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, by the wire's names; what was not is left to the model."""
    names = ("max_tokens", "temperature", "top_p", "seed")
    chosen = {name: arguments[name] for name in names if arguments[name] is not None}
    return {**chosen, "stop": list(arguments["stop"])} if arguments["stop"] else chosen
