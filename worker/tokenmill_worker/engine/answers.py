"""What a forward says of the rows that are sampled: of some the likeliest token alone, of the others all logits."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenmill_worker.engine.batch import Ids

UNKNOWN = -1  # where the logits tell


class Answers(NamedTuple):
    token_ids: Ids  # [S], UNKNOWN for the rows below
    rows: NDArray[np.intp]  # [R], ascending: those with logits
    logits: Tensor | None  # [R, V]; None: there are no such rows

    @classmethod
    def of_logits(cls, logits: Tensor) -> "Answers":
        """[S, V]."""
        return cls(np.full(len(logits), UNKNOWN, dtype=np.int64), np.arange(len(logits)), logits)
