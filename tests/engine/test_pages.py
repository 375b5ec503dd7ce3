from itertools import count

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tokenmill_worker.engine.batch import PAGE_SIZE
from tokenmill_worker.engine.pages import Digest, OutOfPagesError, Pages, num_pages_for


def full_page(token_id: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.full(PAGE_SIZE, token_id, dtype=np.int32)


def chain(pages: Pages, *token_ids: int) -> list[Digest]:
    digests: list[Digest] = []
    for token_id in token_ids:
        digests.append(pages.digest(digests[-1] if digests else None, full_page(token_id)))
    return digests


@pytest.mark.parametrize(("num_tokens", "num_pages"), [(0, 0), (1, 1), (32, 1), (33, 2), (64, 2)])
def test_tokens_take_whole_pages(num_tokens: int, num_pages: int) -> None:
    assert num_pages_for(num_tokens) == num_pages


def test_asking_for_too_many_pages_takes_none() -> None:
    pages = Pages(4)
    pages.allocate(3)
    with pytest.raises(OutOfPagesError):
        pages.allocate(2)
    assert pages.num_free == 1
    pages.check_integrity()


def test_a_digest_covers_everything_before_its_page() -> None:
    pages = Pages(1)
    assert chain(pages, 1, 2)[1] != chain(pages, 3, 2)[1]
    assert chain(pages, 1, 2) == chain(pages, 1, 2)
    assert chain(pages, 1) != chain(Pages(1, salt="another model"), 1)


def test_a_released_page_is_found_again_by_its_content() -> None:
    pages = Pages(4)
    digests = chain(pages, 1, 2)
    held = pages.allocate(2)
    for page, digest in zip(held, digests, strict=True):
        pages.remember(page, digest)
    pages.release(held)
    assert pages.num_free == 4
    assert pages.match(digests) == held
    assert pages.match(chain(pages, 1, 9, 2)) == held[:1]
    assert pages.match(chain(pages, 9, 2)) == []


def test_idle_pages_are_taken_last_the_end_of_a_prefix_first() -> None:
    pages = Pages(3)
    digests = chain(pages, 1, 2)
    held = pages.allocate(2)
    for page, digest in zip(held, digests, strict=True):
        pages.remember(page, digest)
    pages.release(held)
    assert not set(pages.allocate(1)) & set(held)
    assert pages.allocate(1) == held[1:]
    assert pages.match(digests) == held[:1]


def test_a_page_used_again_is_evicted_later() -> None:
    pages = Pages(2)
    first, second = pages.allocate(2)
    pages.remember(first, chain(pages, 1)[0])
    pages.remember(second, chain(pages, 2)[0])
    pages.release([first])
    pages.release([second])
    pages.hold([first])
    pages.release([first])
    assert pages.allocate(1) == [second]


def test_forgotten_content_is_never_found_and_its_page_is_free_after_release() -> None:
    pages = Pages(1)
    held = pages.allocate(1)
    digests = chain(pages, 1)
    pages.remember(held[0], digests[0])
    pages.forget(held)
    assert pages.match(digests) == []
    pages.release(held)
    pages.check_integrity([])
    assert pages.num_free == 1


def test_without_prefix_caching_nothing_is_remembered() -> None:
    pages = Pages(1, enable_prefix_caching=False)
    held = pages.allocate(1)
    pages.remember(held[0], chain(pages, 1)[0])
    assert pages.match(chain(pages, 1)) == []


def test_a_broken_reference_count_is_noticed() -> None:
    pages = Pages(2)
    held = pages.allocate(1)
    with pytest.raises(AssertionError, match="reference counts"):
        pages.check_integrity([held, held])


class PagesMachine(RuleBasedStateMachine):
    """Random holders take, share, fill, forget and give back pages; the pool must agree with the holders' own lists."""

    @initialize(num_pages=st.integers(1, 8), caching=st.booleans())
    def make(self, num_pages: int, caching: bool) -> None:
        self.pages = Pages(num_pages, enable_prefix_caching=caching)
        self.holders: dict[int, list[int]] = {}
        self.content: dict[int, Digest] = {}
        self.ids = count()

    def _new_holder(self, pages: list[int]) -> None:
        self.holders[next(self.ids)] = pages

    @rule(wanted=st.integers(0, 9))
    def allocate(self, wanted: int) -> None:
        num_free = self.pages.num_free
        if wanted > num_free:
            with pytest.raises(OutOfPagesError):
                self.pages.allocate(wanted)
            return
        taken = self.pages.allocate(wanted)
        for page in taken:
            assert all(page not in held for held in self.holders.values())
            self.content.pop(page, None)
        assert self.pages.num_free == num_free - wanted
        self._new_holder(taken)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), token_ids=st.lists(st.integers(0, 2), min_size=1, max_size=3))
    def fill(self, data: st.DataObject, token_ids: list[int]) -> None:
        held = self.holders[data.draw(st.sampled_from(sorted(self.holders)))]
        for page, digest in zip(held, chain(self.pages, *token_ids), strict=False):
            if page not in self.content:
                self.content[page] = digest
                self.pages.remember(page, digest)

    @rule(token_ids=st.lists(st.integers(0, 2), min_size=1, max_size=3))
    def share(self, token_ids: list[int]) -> None:
        digests = chain(self.pages, *token_ids)
        found = self.pages.match(digests)
        assert [self.content[page] for page in found] == digests[: len(found)]
        self.pages.hold(found)
        self._new_holder(found)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        self.pages.forget(self.holders[data.draw(st.sampled_from(sorted(self.holders)))])

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pages.release(self.holders.pop(data.draw(st.sampled_from(sorted(self.holders)))))

    @invariant()
    def check(self) -> None:
        if hasattr(self, "pages"):
            self.pages.check_integrity(list(self.holders.values()))


TestPagesMachine = PagesMachine.TestCase
TestPagesMachine.settings = settings(max_examples=60, stateful_step_count=40)
