"""Greedy in float32: the same tokens as generate(), and the same log-probabilities. Knows the engine's outputs only."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tokenmill_worker.engine.api import RequestOutput

from tests.verify.reference import Reference

NEAR_TIE = 1e-4  # logits: closer than float32 sums in another order agree; either token is a right answer
MOST_NEAR_TIES = 0.03  # of rows; a single one is always allowed
LOGPROB_TOLERANCE = 1e-4


class RowIdentity(NamedTuple):
    """One row against the reference. `gaps`: reference maximum minus our token's logit, where they are not the same."""

    is_identical: bool
    gaps: list[float]
    logprob_error: float

    @property
    def is_near_tie(self) -> bool:
        return not self.is_identical and all(gap < NEAR_TIE for gap in self.gaps)


class Identity(NamedTuple):
    rows: list[RowIdentity]

    @property
    def num_identical(self) -> int:
        return sum(row.is_identical for row in self.rows)

    @property
    def num_near_ties(self) -> int:
        return sum(row.is_near_tie for row in self.rows)

    @property
    def logprob_error(self) -> float:
        return max(row.logprob_error for row in self.rows)

    @property
    def complaints(self) -> list[str]:
        """Empty when everything is as it must be."""
        wrong = [index for index, row in enumerate(self.rows) if not row.is_identical and not row.is_near_tie]
        found = [f"row {index} differs from generate() by more than a near-tie" for index in wrong]
        if self.num_near_ties > max(1, MOST_NEAR_TIES * len(self.rows)):
            found.append(f"{self.num_near_ties} of {len(self.rows)} rows have near-ties: too many to be chance")
        if not self.logprob_error <= LOGPROB_TOLERANCE:
            found.append(f"logprobs differ by {self.logprob_error:.1e}, allowed {LOGPROB_TOLERANCE:.0e}")
        return found


def compare(outputs: Sequence[RequestOutput], reference: Reference, *, max_tokens: int) -> Identity:
    """`outputs` were drawn greedily with logprobs."""
    return Identity([compare_row(output, reference, max_tokens=max_tokens) for output in outputs])


def compare_row(output: RequestOutput, reference: Reference, *, max_tokens: int) -> RowIdentity:
    prompt, ours = output.prompt_token_ids, output.token_ids
    logits = reference.forced_logits(prompt, ours)
    chosen = torch.tensor(ours)[:, None]
    gaps = (logits.max(-1).values - logits.gather(1, chosen)[:, 0]).tolist()
    logprobs = logits.log_softmax(-1).gather(1, chosen)[:, 0]
    told = torch.tensor([logprob.chosen for logprob in output.logprobs])
    return RowIdentity(
        is_identical=ours == reference.generate(prompt, max_tokens=max_tokens),
        gaps=[gap for gap in gaps if gap > 0],
        logprob_error=float((logprobs - told).abs().max()),
    )
