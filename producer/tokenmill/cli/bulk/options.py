"""The options that make a run's spec, in groups which `run` and `submit` share. Knows no queue and no rows."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.inputs import FORMATS
from tokenmill.bulk.outputs import OUT_FORMATS
from tokenmill.bulk.parameters import ParameterError, parse_parameters
from tokenmill.bulk.spec import InputSpec, QueueSpec, RunSpec
from tokenmill.cli.options import sampling_of, sampling_options

Function = TypeVar("Function", bound=Callable[..., Any])
Option = Callable[[Any], Any]

_FILES: tuple[Option, ...] = (
    click.argument("inputs", metavar="INPUT...", nargs=-1, required=True),
    click.option(
        "--format",
        "input_format",
        type=click.Choice(FORMATS),
        help="Of the input; by default its names tell, and OpenAI Batch files are known by their first line.",
    ),
    click.option(
        "--out",
        metavar="OUT",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Where the rows go: .jsonl, .parquet or .csv.",
    ),
    click.option(
        "--out-format",
        type=click.Choice(OUT_FORMATS),
        help="By default as OUT's name says; the answers to an OpenAI Batch file have OpenAI's shape.",
    ),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows of the input."),
)
_PROMPTS: tuple[Option, ...] = (
    click.option("--column", metavar="C", help="The column that holds the prompt."),
    click.option(
        "--template", metavar="T", help="A Jinja2 template over the row's columns; @FILE reads it from a file."
    ),
    click.option("--system", metavar="TEXT", help="A system message before each prompt; @FILE reads it from a file."),
    click.option("--raw", "is_raw", is_flag=True, help="Send the prompt as it is, without the model's chat template."),
    sampling_options,
    click.option(
        "--params-from",
        metavar="COLUMN,...",
        help="Columns that hold a row's own parameters: max_tokens,temperature=heat or one that holds an object.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(1, 1_000),
        default=1,
        show_default=True,
        metavar="K",
        help="Completions for each row; with more of them later, only the new ones are done.",
    ),
    click.option(
        "--id-column",
        metavar="C",
        help="Rows are known by this column, not by their content: an edited row with the same id is not done again.",
    ),
)
_RUN: tuple[Option, ...] = (
    click.option(
        "--order",
        type=click.Choice(["input", "completion"]),
        default="input",
        show_default=True,
        help="Of the finished file; while it grows, rows are in the order in which they finish.",
    ),
    click.option(
        "--window", type=click.IntRange(min=1), metavar="N", help="Rows in flight; by default what the workers need."
    ),
    click.option(
        "--max-errors", type=click.IntRange(min=0), metavar="N", help="Stop when more than N rows have failed."
    ),
)

_LOCAL: tuple[Option, ...] = (
    click.option("--local", "is_local", is_flag=True, help="Start a server and a worker here, for this run only."),
    click.option(
        "--model", metavar="M", help="With --local: what to load (default smollm2). Else: a name the queue serves."
    ),
    click.option("--dtype", metavar="D", help="With --local: auto, bfloat16 or float32."),
    click.option("--max-num-seqs", type=click.IntRange(min=1), metavar="N", help="With --local: rows in one batch."),
)


def local_options(function: Function) -> Function:
    """For who executes a run in this process: on the queue, or with a worker of its own."""
    for option in reversed(_LOCAL):
        function = option(function)
    return function


def spec_options(function: Function) -> Function:
    """All that `spec_of` reads, but the model and the queue."""
    for option in reversed((*_FILES, *_PROMPTS, *_RUN)):
        function = option(function)
    return function


def spec_of(options: Mapping[str, Any], *, model: str | None) -> RunSpec:
    """The run that the options ask for; UsageError when they contradict each other."""
    _check(options)
    return RunSpec(
        input=InputSpec(paths=options["inputs"], format=options["input_format"]),
        out=str(options["out"]),
        out_format=options["out_format"],
        recipe=_recipe(options, model=model),
        samples=options["samples"],
        limit=options["limit"],
        window=options["window"],
        order=options["order"],
        max_errors=options["max_errors"],
        queue=QueueSpec(name=options["queue"], partitions=options["partitions"]),
    )


def _check(options: Mapping[str, Any]) -> None:
    if options["out"] is None:
        raise click.UsageError("Missing option '--out'.")
    if options["column"] is not None and options["template"] is not None:
        raise click.UsageError("--column and --template exclude each other")
    if options["out"].resolve() in {Path(name).resolve() for name in options["inputs"]}:
        raise click.UsageError("INPUT and --out are the same file")


def _recipe(options: Mapping[str, Any], *, model: str | None) -> Recipe:
    return Recipe(
        column=options["column"],
        template=_text(options, "template"),
        system=_text(options, "system"),
        is_raw=options["is_raw"],
        model=model,
        dtype=options.get("dtype"),
        sampling=sampling_of(options),
        parameters=_parameters(options["params_from"]),
        id_column=options["id_column"],
    )


def _text(options: Mapping[str, Any], name: str) -> str | None:
    text: str | None = options[name]
    if text is None or not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--{name} {text}: {error}") from error


def _parameters(text: str | None) -> dict[str, str]:
    try:
        return parse_parameters(text.split(",")) if text is not None else {}
    except ParameterError as error:
        raise click.UsageError(f"--params-from: {error}") from error
