"""The work that engines are measured on: real prompts and fixed output lengths. Knows no engine."""

import json
import os
import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED_PROMPTS = ROOT.parent / "shared" / "data" / "gsm8k_test.jsonl"
OWN_PROMPTS = ROOT / "examples" / "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class Workload:
    """`prompts` are user messages, to be put through the model's chat template; `max_tokens` one output length each."""

    source: str
    prompts: list[str]
    max_tokens: list[int]

    @property
    def num_output_tokens(self) -> int:
        return sum(self.max_tokens)


def prompts_file() -> Path:
    """TOKENMILL_PROMPTS, else GSM8K where it lies beside the project, else the set in examples/."""
    if named := os.environ.get("TOKENMILL_PROMPTS"):
        return Path(named)
    return SHARED_PROMPTS if SHARED_PROMPTS.exists() else OWN_PROMPTS


def read_prompts(num: int) -> tuple[str, list[str]]:
    """The source's name, and `num` prompts from it; a shorter file is repeated from its start."""
    file = prompts_file()
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, num)]
    texts = [row.get("question") or row["prompt"] for row in rows]
    return file.name, [texts[k % len(texts)] for k in range(num)]


def workload(num: int, *, seed: int = 0, scale: float = 1.0) -> Workload:
    """Workload A of the project's anchors: log-normal output lengths (mean about 122, 16 to 384), times `scale`."""
    source, prompts = read_prompts(num)
    rng = random.Random(seed)
    lengths = [max(16, min(384, int(rng.lognormvariate(4.6, 0.7)))) for _ in prompts]
    return Workload(source, prompts, [max(1, int(length * scale)) for length in lengths])
