"""What tier 1 replaced in a model, and what it left. Knows no module."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tokenmill_worker.engine.surgery.pieces import Replaced


@dataclass(frozen=True, slots=True)
class Report:
    num_layers: int
    num_rebuilt: int
    has_program: bool
    is_screened: bool  # the head, for rows of which only the likeliest token is wanted
    pieces: Replaced
    reasons: Sequence[str]  # why something stayed as transformers made it, one for each layer

    def __str__(self) -> str:
        parts = [f"{self.num_rebuilt} of {self.num_layers} layers rebuilt"]
        if self.has_program:
            parts.append("transformers' outer forward replaced")
        if self.is_screened:
            parts.append("the head screened in int8 for greedy rows")
        if self.pieces != Replaced():
            parts.append(f"{self.pieces.linears} linears and {self.pieces.norms} norms replaced one by one")
        parts += [f"{reason} ({count} times)" for reason, count in Counter(self.reasons).items()]
        return "; ".join(parts)
