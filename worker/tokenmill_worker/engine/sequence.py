"""One choice of one request while it is generated: its tokens, four ints, its pages. Knows no text and no policy."""

from collections.abc import Sequence as SequenceOf

import numpy as np

from tokenmill_worker.engine.api import SamplingParams
from tokenmill_worker.engine.batch import PAGE_SIZE, Ints
from tokenmill_worker.engine.pages import Digest, Pages
from tokenmill_worker.engine.rows import Rows

Rank = tuple[int, int, int]  # (priority, arrival, choice): lower runs first and is preempted last


class Sequence:
    """n_prompt <= n_total known tokens, of which n_done have their KV stored, of at most max_total.

    A step wants n_total - n_done tokens of it: 1 is a decode, more a prefill chunk. While it runs, its tokens, pages
    and ints are a row of `Rows`; while it waits it has its known tokens and nothing else.
    """

    __slots__ = (
        "_known",
        "_rows",
        "arrived_s",
        "copy_source",
        "digests",
        "index",
        "max_total",
        "n_prompt",
        "num_cached_tokens",
        "params",
        "rank",
        "request_id",
        "row",
        "seed",
        "siblings",
        "stop_token_ids",
    )

    def __init__(
        self,
        prompt_token_ids: SequenceOf[int] | Ints,
        params: SamplingParams,
        *,
        max_total: int,
        request_id: str = "",
        rank: Rank = (0, 0, 0),
        seed: int = 0,
        stop_token_ids: tuple[int, ...] = (),
        output_token_ids: SequenceOf[int] = (),
        siblings: "list[Sequence] | None" = None,
    ) -> None:
        self.params = params
        self.request_id = request_id
        self.rank = rank
        self.index = rank[2]
        self.arrived_s = 0.0  # by the engine's clock
        self.seed = seed
        self.stop_token_ids = stop_token_ids  # the end-of-sequence tokens among them, unless they are ignored
        self.n_prompt = len(prompt_token_ids)
        self.max_total = max_total
        self._known: Ints = np.empty(self.n_prompt + len(output_token_ids), dtype=np.int32)  # while it does not run
        self._known[: self.n_prompt] = prompt_token_ids
        self._known[self.n_prompt :] = output_token_ids
        self._rows: Rows | None = None
        self.row = 0  # in `_rows`, while it runs
        self.copy_source: int | None = None  # the page to copy into the last own page before the next step
        self.digests: list[Digest] = []  # of the full pages, as far as anybody asked
        self.num_cached_tokens: int | None = None  # prompt tokens found in the prefix cache at the first admission
        self.siblings: list[Sequence] = [] if siblings is None else siblings  # all choices of the request, one list
        self.siblings.append(self)

    # Between waiting and running

    def join(self, rows: Rows) -> None:
        self.row = rows.take(self._known, self.params, n_prompt=self.n_prompt, max_total=self.max_total, seed=self.seed)
        self._rows = rows
        self._known = self._known[:0]

    def leave(self) -> None:
        """Undo `join`. The known tokens stay; what was stored of them does not, nor what was drawn and not read."""
        assert self._rows is not None
        self._known = self.token_ids.copy()
        self._rows.give_back(self.row)
        self._rows = None

    @property
    def is_running(self) -> bool:
        return self._rows is not None

    # What is known, and how much of it is stored

    @property
    def n_total(self) -> int:
        return len(self._known) if self._rows is None else int(self._rows.n_total[self.row])

    @property
    def n_done(self) -> int:
        return 0 if self._rows is None else int(self._rows.n_done[self.row])

    @property
    def num_pages(self) -> int:
        return 0 if self._rows is None else int(self._rows.num_pages[self.row])

    @property
    def num_wanted(self) -> int:
        return self.n_total if self._rows is None else self._rows.num_wanted_by(self.row)

    @property
    def num_output_tokens(self) -> int:
        return self.n_total - self.n_prompt

    @property
    def token_ids(self) -> Ints:
        """All known tokens; a view."""
        return self._known if self._rows is None else self._rows.token_ids[self.row, : self.n_total]

    @property
    def prompt_token_ids(self) -> Ints:
        return self.token_ids[: self.n_prompt]

    @property
    def output_token_ids(self) -> Ints:
        return self.token_ids[self.n_prompt :]

    @property
    def page_ids(self) -> Ints:
        """Its pages, a view: they hold the first n_done tokens and, once scheduled, those of the step."""
        return np.zeros(0, np.int32) if self._rows is None else self._rows.page_ids[self.row, : self.num_pages]

    @property
    def pages(self) -> list[int]:
        return self.page_ids.tolist()  # type: ignore[no-any-return]  # numpy leaves it open

    def add_pages(self, pages: list[int]) -> None:
        assert self._rows is not None
        num_pages = self.num_pages
        self._rows.page_ids[self.row, num_pages : num_pages + len(pages)] = pages
        self._rows.num_pages[self.row] += len(pages)

    def start_at(self, n_done: int, *, n_remembered: int) -> None:
        """Its pages hold the first `n_done` tokens already, and the prefix cache knows the first `n_remembered`."""
        assert self._rows is not None
        self._rows.n_done[self.row] = n_done
        self._rows.n_remembered[self.row] = n_remembered

    def fork_from(self, page: int | None) -> None:
        """Its last own page begins as a copy of this one; None: it does so now."""
        self.copy_source = page
        if self._rows is not None:
            self._rows.is_forked[self.row] = page is not None

    def page_digests(self, num_pages: int, pages: Pages) -> list[Digest]:
        """Digests of the first `num_pages` pages, which must be full of known tokens."""
        for index in range(len(self.digests), num_pages):
            parent = self.digests[-1] if self.digests else None
            tokens = self.token_ids[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
            self.digests.append(pages.digest(parent, tokens))
        return self.digests[:num_pages]
