"""The work that engines are measured on: real prompts and fixed output lengths. Knows no engine."""

import random
from dataclasses import dataclass

from tests.support.prompts import load_prompts


@dataclass(frozen=True, slots=True)
class Workload:
    """`prompts` are user messages, to be put through the model's chat template; `max_tokens` one output length each."""

    source: str
    prompts: list[str]
    max_tokens: list[int]

    @property
    def num_output_tokens(self) -> int:
        return sum(self.max_tokens)


def workload(num: int, *, seed: int = 0, scale: float = 1.0) -> Workload:
    """Workload A of the project's anchors: log-normal output lengths (mean about 122, 16 to 384), times `scale`."""
    source, prompts = load_prompts(num)
    rng = random.Random(seed)
    lengths = [max(16, min(384, int(rng.lognormvariate(4.6, 0.7)))) for _ in prompts]
    return Workload(source.name, prompts, [max(1, int(length * scale)) for length in lengths])
