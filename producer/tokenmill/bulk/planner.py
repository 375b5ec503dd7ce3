"""Which rows of an input are still missing, each with its request ready to send. Knows the ledger, no queue."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tokenmill.bulk.batch_lines import render_batch_line
from tokenmill.bulk.identity import content_hash, recipe_digest, row_hash, sample_seed, seed_of
from tokenmill.bulk.inputs import open_rows
from tokenmill.bulk.ledger import Ledger
from tokenmill.bulk.outputs.paths import own_files
from tokenmill.bulk.prompts import PromptError, renderer_of
from tokenmill.bulk.rows import JSON, BadRow, Fields, Row
from tokenmill.bulk.spec import RunSpec
from tokenmill.wire.errors import InvalidRequestError
from tokenmill.wire.store import Submission


class OutgoingRow(NamedTuple):
    """A row on its way. `sample` counts its completions from 0, `attempt` the ids that earlier failures used up.

    `max_tokens` None: the worker's own.
    """

    row: Row
    row_hash: str
    submission: Submission
    sample: int = 0
    attempt: int = 0
    max_tokens: int | None = None

    @property
    def request_id(self) -> str:
        return self.submission.request_id

    def again(self) -> "OutgoingRow":
        """The same under the next id."""
        base = self.request_id.removesuffix(f"~{self.attempt}")
        attempt = self.attempt + 1
        return self._replace(submission=replace(self.submission, request_id=f"{base}~{attempt}"), attempt=attempt)


class Planner:
    """Goes through the input once. Of rows that are done or can never run, the two functions get the number of
    completions; of the latter also what is wrong, and a code for it.
    """

    def __init__(
        self,
        spec: RunSpec,
        run_id: str,
        ledger: Ledger,
        *,
        on_skip: Callable[[int], None],
        on_refuse: Callable[[int, BadRow, str], None],
        only: frozenset[str] | None = None,
    ) -> None:
        """`only`: no other rows than these are missing."""
        self._spec = spec
        self._only = only
        self._run_id = run_id
        self._ledger = ledger
        recipe = spec.recipe
        self._render = render_batch_line if spec.input.format == "openai" else renderer_of(recipe)
        self._recipe = recipe_digest(recipe)
        self._settings: Fields = {
            "group": run_id,
            "priority": spec.priority,
            "stream": "final",
        }
        if recipe.model is not None:
            self._settings["model"] = recipe.model
        self._on_skip = on_skip
        self._on_refuse = on_refuse

    def missing_rows(self) -> Iterator[OutgoingRow]:
        for row in open_rows(self._spec.input, limit=self._spec.limit, exclude=own_files(Path(self._spec.out))):
            yield from self._plan_row(row)

    def _plan_row(self, row: Row | BadRow) -> list[OutgoingRow]:
        """Those of its completions that are missing; what is done or refused is told, and settled."""
        if isinstance(row, BadRow):
            return self._refuse(self._spec.samples, row, "bad_row")
        try:
            names = self._names(row)
        except ValueError as error:  # half of a surrogate pair; a number beyond all floats; no such id
            return self._refuse(self._spec.samples, BadRow(row.number, str(error), None), "bad_row")
        missing = {sample: name for sample, name in names.items() if not self._ledger.is_done(name)}
        if len(missing) < len(names):
            self._on_skip(len(names) - len(missing))
        if self._only is not None:
            missing = {sample: name for sample, name in missing.items() if name in self._only}
        return self._build(row, missing) if missing else []

    def _refuse(self, num: int, row: BadRow, code: str) -> list[OutgoingRow]:
        self._on_refuse(num, row, code)
        return []

    def _names(self, row: Row) -> dict[int, str]:
        """The row hash of each of its completions."""
        content = content_hash(self._recipe, self._identity(row.fields))
        occurrence, samples = self._ledger.see(content), self._spec.samples
        names = {sample: row_hash(content, occurrence, sample) for sample in range(samples)}
        if self._spec.order == "input":
            for sample, name in names.items():
                self._ledger.place(row.number * samples + sample, name)
        return names

    def _identity(self, fields: Fields) -> Fields:
        """What of a row tells it from others."""
        column = self._spec.recipe.id_column
        if column is None:
            return fields
        value: JSON = fields.get(column)
        if value is None or value == "":
            raise ValueError(f"no id: the column {column!r} is empty or missing")
        return {column: value}

    def _build(self, row: Row, missing: dict[int, str]) -> list[OutgoingRow]:
        try:
            fields = self._request(row.fields)
            return [self._outgoing(row, name, sample, fields) for sample, name in missing.items()]
        except PromptError as error:
            return self._refuse(len(missing), BadRow(row.number, str(error), row.fields), "bad_prompt")
        except InvalidRequestError as error:
            return self._refuse(len(missing), BadRow(row.number, str(error), row.fields), error.code)

    def _request(self, fields: Fields) -> Fields:
        """All of a request but its seed, by the names of `Request.build`."""
        # A row's own word wins, but for the model: a file that was made for another one runs on ours.
        return {**self._spec.recipe.sampling, **self._render(fields), **self._settings}

    def _outgoing(self, row: Row, name: str, sample: int, fields: Fields) -> OutgoingRow:
        seed = fields.get("seed", seed_of(name))
        if isinstance(seed, int) and "seed" in fields:
            seed = sample_seed(seed, sample)
        submission = Submission.build(f"{self._run_id}:{name}", {**fields, "seed": seed})
        return OutgoingRow(row, name, submission, sample, max_tokens=_max_tokens(fields))


def _max_tokens(fields: Fields) -> int | None:
    """By either name; the request was checked before."""
    given = fields.get("max_tokens") or fields.get("max_completion_tokens")
    return given if isinstance(given, int) else None
