"""One choice of one request while it is generated: its tokens, four ints, its pages. Knows no text and no policy."""

from collections.abc import Sequence as SequenceOf

import numpy as np

from tokenmill_worker.engine.api import SamplingParams
from tokenmill_worker.engine.batch import PAGE_SIZE, Ints
from tokenmill_worker.engine.pages import Digest, Pages, num_pages_for

Rank = tuple[int, int, int]  # (priority, arrival, choice): lower runs first and is preempted last


class Sequence:
    """n_prompt <= n_total known tokens, of which n_done have their KV stored, of at most max_total.

    A step wants n_total - n_done tokens of it: 1 is a decode, more a prefill chunk. `page_ids` (read `pages`) hold the
    first n_done tokens and, once scheduled, those of the step.
    """

    __slots__ = (
        "copy_source",
        "digests",
        "index",
        "is_running",
        "max_total",
        "n_done",
        "n_prompt",
        "n_remembered",
        "n_total",
        "num_cached_tokens",
        "num_pages",
        "page_ids",
        "params",
        "prompt_token_ids",
        "rank",
        "request_id",
        "seed",
        "siblings",
        "stop_token_ids",
        "token_ids",
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
        self.seed = seed
        self.stop_token_ids = stop_token_ids  # the end-of-sequence tokens among them, unless they are ignored
        self.n_prompt = len(prompt_token_ids)
        self.n_total = self.n_prompt + len(output_token_ids)
        self.n_done = 0
        self.max_total = max_total
        self.token_ids: Ints = np.empty(max_total, dtype=np.int32)
        self.token_ids[: self.n_prompt] = prompt_token_ids
        self.token_ids[self.n_prompt : self.n_total] = output_token_ids
        self.prompt_token_ids: Ints = self.token_ids[: self.n_prompt]
        self.page_ids: Ints = np.empty(num_pages_for(max_total), dtype=np.int32)
        self.num_pages = 0
        self.copy_source: int | None = None  # the page to copy into the last own page before the next step
        self.digests: list[Digest] = []  # of the full pages, as far as anybody asked
        self.n_remembered = 0  # full pages that the prefix cache has been told of
        self.num_cached_tokens: int | None = None  # prompt tokens found in the prefix cache at the first admission
        self.is_running = False
        self.siblings: list[Sequence] = [] if siblings is None else siblings  # all choices of the request, one list
        self.siblings.append(self)

    @property
    def num_wanted(self) -> int:
        return self.n_total - self.n_done

    @property
    def num_output_tokens(self) -> int:
        return self.n_total - self.n_prompt

    @property
    def output_token_ids(self) -> Ints:
        return self.token_ids[self.n_prompt : self.n_total]

    @property
    def pages(self) -> list[int]:
        return self.page_ids[: self.num_pages].tolist()  # type: ignore[no-any-return]

    def append(self, token_id: int) -> None:
        self.token_ids[self.n_total] = token_id
        self.n_total += 1

    def add_pages(self, pages: list[int]) -> None:
        self.page_ids[self.num_pages : self.num_pages + len(pages)] = pages
        self.num_pages += len(pages)

    def page_digests(self, num_pages: int, pages: Pages) -> list[Digest]:
        """Digests of the first `num_pages` pages, which must be full of known tokens."""
        for index in range(len(self.digests), num_pages):
            parent = self.digests[-1] if self.digests else None
            tokens = self.token_ids[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
            self.digests.append(pages.digest(parent, tokens))
        return self.digests[:num_pages]
