"""One step as integers on the wire: the packed batch and which tokens' logits are wanted. Knows no process."""

from typing import NamedTuple

import numpy as np

from tokenmill_worker.engine.batch import Ints, PackedBatch

STOP: Ints = np.zeros(0, dtype=np.int32)  # no step is empty
ARRAYS = ("token_ids", "positions", "slots", "row_starts", "context_lens", "page_ids", "page_starts")
NUM_PARTS = len(ARRAYS) + 2


class Step(NamedTuple):
    batch: PackedBatch  # without its samples: only rank 0 draws
    keep: Ints  # [S]


def encode(step: Step) -> Ints:
    """The lengths of the parts, then the parts."""
    copies = np.array(step.batch.page_copies, dtype=np.int32).reshape(-1)
    parts = [*(getattr(step.batch, name) for name in ARRAYS), step.keep, copies]
    return np.concatenate([[len(part) for part in parts], *parts]).astype(np.int32)


def decode(message: Ints) -> Step:
    """What `encode` made of it."""
    lengths, content = message[:NUM_PARTS], message[NUM_PARTS:]
    *arrays, keep, copies = np.split(content, np.cumsum(lengths)[:-1])
    pairs = [(source, target) for source, target in copies.reshape(-1, 2).tolist()]
    token_ids, positions, slots, row_starts, context_lens, page_ids, page_starts = arrays
    batch = PackedBatch(token_ids, positions, slots, row_starts, context_lens, page_ids, page_starts, page_copies=pairs)
    return Step(batch, keep)
