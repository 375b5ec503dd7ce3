"""Who holds which page of the KV pool, and which pages can be reused. Knows page numbers, not what lies in them."""

import hashlib

from tokenmill_worker.engine.batch import PAGE_SIZE, Ints

Digest = bytes


def num_pages_for(num_tokens: int) -> int:
    """Pages that `num_tokens` tokens take."""
    return -(-num_tokens // PAGE_SIZE)


class OutOfPagesError(Exception):
    """More pages were asked for than are free; nothing was taken."""


class Pages:
    """A pool of pages, each in exactly one of three places:

    held      referenced by one or more sequences
    idle      referenced by nobody, its content still in the prefix cache; taken last, least recently used first
    free      a stack

    A full page is known by its digest, which covers its tokens and all tokens before them: equal digests mean equal
    content, so a page can stand in for another sequence's prefix.
    """

    def __init__(self, num_pages: int, *, enable_prefix_caching: bool = True, salt: str = "") -> None:
        self.num_pages = num_pages
        self.enable_prefix_caching = enable_prefix_caching
        self._root = hashlib.blake2b(salt.encode(), digest_size=16).digest()
        self._ref_counts = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._idle: dict[int, None] = {}  # insertion order is least recently used first
        self._page_of: dict[Digest, int] = {}
        self._digest_of: dict[int, Digest] = {}

    @property
    def num_free(self) -> int:
        """Pages that `allocate` can hand out, idle ones included."""
        return len(self._free) + len(self._idle)

    # Holding

    def allocate(self, num_pages: int) -> list[int]:
        """Fresh pages, each held once. Raises OutOfPagesError and takes none when there are too few."""
        if num_pages > self.num_free:
            raise OutOfPagesError(f"{num_pages} pages wanted, {self.num_free} free")
        pages = [self._free.pop() if self._free else self._evict() for _ in range(num_pages)]
        for page in pages:
            self._ref_counts[page] = 1
        return pages

    def hold(self, pages: list[int]) -> None:
        """One more reference to each: pages of another sequence, or idle ones found by `match`."""
        for page in pages:
            if self._ref_counts[page] == 0:
                del self._idle[page]
            self._ref_counts[page] += 1

    def release(self, pages: list[int]) -> None:
        """One reference less to each. Unreferenced pages stay idle when the prefix cache knows them, else are free."""
        for page in reversed(pages):  # a prefix is worth more than what follows it: its last page is evicted first
            self._ref_counts[page] -= 1
            if self._ref_counts[page] == 0:
                self._retire(page)

    def num_held(self, pages: list[int]) -> int:
        """How many of `pages` somebody holds, so that holding them too costs no free page."""
        return sum(self._ref_counts[page] > 0 for page in pages)

    def _retire(self, page: int) -> None:
        if page in self._digest_of:
            self._idle[page] = None
        else:
            self._free.append(page)

    def _evict(self) -> int:
        page = next(iter(self._idle))
        del self._idle[page]
        del self._page_of[self._digest_of.pop(page)]
        return page

    # Prefix cache

    def digest(self, parent: Digest | None, token_ids: Ints) -> Digest:
        """Digest of a full page [PAGE_SIZE] that follows `parent` (None: the first page)."""
        return hashlib.blake2b(token_ids.tobytes(), key=parent or self._root, digest_size=16).digest()

    def match(self, digests: list[Digest]) -> list[int]:
        """The longest run of cached pages from the start of `digests`. They are not held by asking."""
        pages: list[int] = []
        for digest in digests:
            page = self._page_of.get(digest)
            if page is None:
                break
            pages.append(page)
        return pages

    def remember(self, page: int, digest: Digest) -> None:
        """A held page is full now. Of two pages with equal content the first stays the known one."""
        if self.enable_prefix_caching and digest not in self._page_of:
            self._page_of[digest] = page
            self._digest_of[page] = digest

    def forget(self, pages: list[int]) -> None:
        """Nobody may reuse what is in these held pages: their content is in doubt."""
        for page in pages:
            digest = self._digest_of.pop(page, None)
            if digest is not None:
                del self._page_of[digest]

    # Invariants

    def check_integrity(self, holders: list[list[int]] | None = None) -> None:
        """Raises AssertionError unless every page is in one place. `holders`: all lists of held pages, if known."""
        held = {page for page, count in enumerate(self._ref_counts) if count}
        assert all(count >= 0 for count in self._ref_counts), "a page was released more often than held"
        assert len(self._free) == len(set(self._free)), "a page is free twice"
        places = [*self._free, *self._idle, *held]
        assert sorted(places) == list(range(self.num_pages)), "a page is lost, or in two places"
        assert {digest: page for page, digest in self._digest_of.items()} == self._page_of, "the prefix cache is torn"
        assert all(page in self._digest_of for page in self._idle), "an idle page has no known content"
        assert not any(page in self._digest_of for page in self._free), "a free page has known content"
        if holders is not None:
            self._check_holders(holders)

    def _check_holders(self, holders: list[list[int]]) -> None:
        counts = [0] * self.num_pages
        for pages in holders:
            assert len(pages) == len(set(pages)), "a page table names a page twice"
            for page in pages:
                counts[page] += 1
        assert counts == self._ref_counts, "reference counts do not match the page tables"
