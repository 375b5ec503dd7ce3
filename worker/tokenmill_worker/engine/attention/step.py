"""One packed batch as attention sees it: who owns which tokens and which pages. Knows no model and no layer."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, cast

import numpy as np
from torch import Tensor

from tokenmill_worker.engine.batch import PAGE_SIZE, Ints, PackedBatch

PlanT = TypeVar("PlanT")


class RowView(NamedTuple):
    """One row: tokens [start, end) of the packed run are the last ones of `context` tokens, stored in `page_ids`."""

    start: int
    end: int
    context: int
    page_ids: Ints

    @property
    def num_tokens(self) -> int:
        return self.end - self.start

    @property
    def is_fresh(self) -> bool:
        """All that the row attends to is in this step; nothing has to be read from pages."""
        return self.num_tokens == self.context

    def first_page_in(self, window: int | None) -> int:
        """The first of the row's pages that any of this step's tokens can see."""
        if window is None:
            return 0
        first_position = self.context - self.num_tokens
        return max(0, first_position - window + 1) // PAGE_SIZE


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """Shared by all layers of one step. `plans` keeps what a backend derived from it once, for the other layers."""

    batch: PackedBatch
    slots: Tensor  # [T] int64
    plans: dict[Hashable, object] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: PackedBatch, slots: Tensor) -> "AttentionStep":
        return cls(batch, slots)

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Pages and offsets in them, [T] each, of the slots; not every backend asks."""
        slots = self.slots
        return self.plan("places", lambda: (slots // PAGE_SIZE, slots % PAGE_SIZE))

    def rows(self) -> Iterator[RowView]:
        batch = self.batch
        starts, page_starts = batch.row_starts.tolist(), batch.page_starts.tolist()
        for row, context in enumerate(batch.context_lens.tolist()):
            pages = batch.page_ids[page_starts[row] : page_starts[row + 1]]
            yield RowView(starts[row], starts[row + 1], context, pages[: -(-context // PAGE_SIZE)])

    def plan(self, key: Hashable, make: Callable[[], PlanT]) -> PlanT:
        """What `make` returned for this key earlier in the step, made now if this is the first layer to ask."""
        if key not in self.plans:
            self.plans[key] = make()
        return cast("PlanT", self.plans[key])


def visible(queries: np.ndarray, keys: np.ndarray, window: int | None) -> np.ndarray:
    """Which positions see which: bool, broadcast over both arrays of positions."""
    mask = keys <= queries
    return mask if window is None else mask & (keys > queries - window)
