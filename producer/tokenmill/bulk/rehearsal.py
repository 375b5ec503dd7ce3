"""What a run would do, without writing its output: a few prompts with their tokens, or a measured estimate.

Both really ask the model, through the same path as a run, with a scratch folder in the place of the output.
"""

import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tokenmill.bulk.batch_lines import CHAT, COMPLETIONS, render_batch_line
from tokenmill.bulk.execute import definite
from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.inputs import open_rows
from tokenmill.bulk.output import encode_line
from tokenmill.bulk.outputs.paths import own_files
from tokenmill.bulk.prompts import PromptError, Renderer, renderer_of
from tokenmill.bulk.report import RunReport
from tokenmill.bulk.rows import BadRow, Fields, Row
from tokenmill.bulk.spec import InputSpec, RunSpec

SAMPLE_ROWS = 64  # of a dry run: a batch of the usual size, some seconds to a minute of work
CONFIDENCE = 1.96  # standard errors to both sides: 95 of 100 times the truth lies between

Run = Callable[[RunSpec], RunReport]


@dataclass(frozen=True, slots=True)
class Preview:
    """One row: its request's fields, or why it has none. `num_tokens` of its prompt; None: no model was asked."""

    number: int
    request: Fields | None
    reason: str | None = None
    num_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Range:
    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of a whole run, from `num_sampled` of its `num_rows` rows. `failing` is the share of sampled rows that failed."""

    num_rows: int
    num_sampled: int
    num_bad: int
    failing: float
    prompt_tokens: Range
    completion_tokens: Range
    tokens_per_s: float
    seconds: Range

    def describe(self) -> Fields:
        return asdict(self)


# --- prompts ---


def preview(spec: RunSpec, num_rows: int) -> list[Preview]:
    """The first rows of the input as they would be asked; no model is needed."""
    spec = definite(spec)
    render = render_batch_line if spec.input.format == "openai" else renderer_of(spec.recipe)
    limit = min(num_rows, spec.limit or num_rows)
    rows = open_rows(spec.input, limit=limit, exclude=own_files(Path(spec.out)))
    return [_previewed(row, render) for row in rows]


def _previewed(row: Row | BadRow, render: Renderer) -> Preview:
    if isinstance(row, BadRow):
        return Preview(row.number, None, row.reason)
    try:
        return Preview(row.number, render(row.fields))
    except PromptError as error:
        return Preview(row.number, None, str(error))


def with_tokens(spec: RunSpec, previews: Sequence[Preview], folder: Path, run: Run) -> list[Preview]:
    """The same with the tokens of each prompt, as the model counts them: each is asked for one token."""
    lines = [_one_token_line(each) for each in previews if each.request is not None]
    recipe = Recipe(model=spec.recipe.model, dtype=spec.recipe.dtype)
    out = _run_scratch(replace(spec, recipe=recipe), lines, "openai", folder, run)
    counts = {int(line["custom_id"]): int(line["usage"]["prompt_tokens"]) for line in _lines(out)}
    failed = _lines(out.with_suffix(".errors.jsonl"))
    errors = {int(line["custom_id"]): str(line["error"]["message"]) for line in failed}
    return [
        replace(each, num_tokens=counts.get(each.number), reason=each.reason or errors.get(each.number))
        for each in previews
    ]


def _one_token_line(each: Preview) -> Fields:
    asked = each.request or {}
    name, url = ("messages", CHAT) if "messages" in asked else ("prompt", COMPLETIONS)
    return {"custom_id": str(each.number), "method": "POST", "url": url, "body": {name: asked[name], "max_tokens": 1}}


# --- the estimate ---


def estimate(spec: RunSpec, folder: Path, run: Run, *, size: int = SAMPLE_ROWS) -> Estimate:
    """Runs `size` rows, drawn over the whole input, and says what all of them would take."""
    spec = definite(spec)
    rows, num_rows, num_bad = _sample(open_rows(spec.input, limit=spec.limit, exclude=own_files(Path(spec.out))), size)
    form = "openai" if spec.input.format == "openai" else "jsonl"
    scratch = replace(spec, recipe=replace(spec.recipe, id_column=None))
    reports: list[RunReport] = []
    out = _run_scratch(scratch, [row.fields for row in rows], form, folder, lambda one: _kept(reports, run(one)))
    usages = [line["usage"] for line in _lines(out)]
    num_good = (num_rows - num_bad) * spec.samples
    failing = 1 - len(usages) / len(rows) if rows else 0.0
    prompts = _total([usage["prompt_tokens"] for usage in usages], round(num_good * (1 - failing)))
    completions = _total([usage["completion_tokens"] for usage in usages], round(num_good * (1 - failing)))
    rate = reports[0].tokens_per_s if reports else 0.0
    ends = (completions.low, completions.likely, completions.high)
    seconds = Range(*(value / rate if rate else 0.0 for value in ends))
    return Estimate(num_rows, len(rows), num_bad, failing, prompts, completions, rate, seconds)


def _kept(reports: list[RunReport], report: RunReport) -> RunReport:
    reports.append(report)
    return report


def _sample(rows: Iterable[Row | BadRow], size: int) -> tuple[list[Row], int, int]:
    """(so many good rows, each as likely as any other; rows in all; bad rows among them), in one pass."""
    chosen: list[Row] = []
    draw = random.Random(0)
    num_rows = num_bad = 0
    for row in rows:
        num_rows += 1
        if isinstance(row, BadRow):
            num_bad += 1
        elif len(chosen) < size:
            chosen.append(row)
        elif (place := draw.randrange(num_rows - num_bad)) < size:
            chosen[place] = row
    return chosen, num_rows, num_bad


def _total(values: Sequence[int], num_rows: int) -> Range:
    """Of so many rows like these: the mean, and as far to both sides as its standard error says."""
    if not values:
        return Range(0.0, 0.0, 0.0)
    mean = fmean(values)
    left_out = 1 - min(1.0, len(values) / max(1, num_rows))  # a sample of all rows leaves nothing open
    error = CONFIDENCE * stdev(values) / math.sqrt(len(values)) * math.sqrt(left_out) if len(values) > 1 else 0.0
    return Range(max(0.0, mean - error) * num_rows, mean * num_rows, (mean + error) * num_rows)


# --- a run into a scratch folder ---


def _run_scratch(spec: RunSpec, rows: Iterable[Fields], form: str, folder: Path, run: Run) -> Path:
    """The output's path."""
    source, out = folder / "rows.jsonl", folder / "out.jsonl"
    source.write_bytes(b"".join(map(encode_line, rows)))
    scratch = replace(
        spec,
        input=InputSpec(paths=(str(source),), format=form),
        out=str(out),
        out_format="jsonl",
        limit=None,
        samples=1,
        max_errors=None,
        only_failed=False,
    )
    if source.stat().st_size:
        run(scratch)
    return out


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
