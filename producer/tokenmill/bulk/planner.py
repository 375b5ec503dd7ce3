"""Which rows of an input are still missing, each with its request ready to send. Knows the ledger, no queue."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tokenmill.bulk.identity import canonical, content_hash, recipe_digest, row_hash, seed_of
from tokenmill.bulk.ledger import Ledger
from tokenmill.bulk.prompts import PromptError, make_renderer
from tokenmill.bulk.rows import BadRow, Fields, Row, read_rows
from tokenmill.bulk.spec import RunSpec
from tokenmill.wire.errors import InvalidRequestError
from tokenmill.wire.messages import Request


class OutgoingRow(NamedTuple):
    """A row on its way. `attempt` counts the ids that earlier failures have used up."""

    run_id: str
    row: Row
    row_hash: str
    request: Request
    attempt: int = 0

    @property
    def request_id(self) -> str:
        base = f"{self.run_id}:{self.row_hash}"
        return f"{base}~{self.attempt}" if self.attempt else base


def input_path(spec: RunSpec) -> Path:
    (path,) = spec.input.paths
    return Path(path)


class Planner:
    """Goes through the input once. Done rows are counted by `on_skip`, rows that can never run go to `on_refuse`."""

    def __init__(
        self,
        spec: RunSpec,
        run_id: str,
        ledger: Ledger,
        *,
        on_skip: Callable[[], None],
        on_refuse: Callable[[BadRow, str], None],
    ) -> None:
        self._spec = spec
        self._run_id = run_id
        self._ledger = ledger
        recipe = spec.recipe
        self._make_prompt = make_renderer(column=recipe.column, template=recipe.template, is_raw=recipe.is_raw)
        self._recipe = recipe_digest(recipe)
        self._on_skip = on_skip
        self._on_refuse = on_refuse

    def missing_rows(self) -> Iterator[OutgoingRow]:
        for row in read_rows(input_path(self._spec), limit=self._spec.limit):
            outgoing = self._plan_row(row)
            if outgoing is not None:
                yield outgoing

    def _plan_row(self, row: Row | BadRow) -> OutgoingRow | None:
        """None: the row is settled already, as done or as refused."""
        if isinstance(row, BadRow):
            return self._on_refuse(row, "bad_row")
        try:
            name = self._identify(row)
        except ValueError as error:  # half of a surrogate pair; a number beyond all floats
            return self._on_refuse(BadRow(row.number, f"not writable as JSON: {error}", None), "bad_row")
        if self._ledger.is_done(name):
            return self._on_skip()
        return self._build(row, name)

    def _identify(self, row: Row) -> str:
        content = content_hash(self._recipe, row.fields)
        name = row_hash(content, self._ledger.see(content))
        if self._spec.order == "input":
            self._ledger.place(row.number, name)
        return name

    def _build(self, row: Row, name: str) -> OutgoingRow | None:
        try:
            request = self._request(row.fields, name)
        except PromptError as error:
            return self._on_refuse(BadRow(row.number, str(error), row.fields), "bad_prompt")
        except InvalidRequestError as error:
            return self._on_refuse(BadRow(row.number, str(error), row.fields), error.code)
        return OutgoingRow(self._run_id, row, name, request)

    def _request(self, fields: Fields, name: str) -> Request:
        prompt = self._make_prompt(fields)
        try:
            canonical(prompt)
        except ValueError as error:  # a template may make what a row may not hold
            raise PromptError(f"the prompt is no Unicode text: {error}") from error
        recipe = self._spec.recipe
        settings = {"seed": seed_of(name), "model": recipe.model, **recipe.sampling}
        return Request.build(**prompt, **settings, group=self._run_id, priority="bulk", stream="final")
