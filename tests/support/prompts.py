"""Where the prompts of tests, verification and benchmarks come from. Knows no model."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k_test.jsonl"
OWN_SET = ROOT / "examples" / "prompts.jsonl"
FIELDS = ("question", "prompt")


class PromptSet(NamedTuple):
    source: Path
    texts: list[str]


def load_prompts(num: int) -> PromptSet:
    """The first `num` of TOKENMILL_PROMPTS, else of GSM8K if it is at hand, else of our own set; repeated if short."""
    named = os.environ.get("TOKENMILL_PROMPTS")
    source = Path(named) if named else GSM8K if GSM8K.is_file() else OWN_SET
    texts = list(_texts(source))
    return PromptSet(source, [texts[index % len(texts)] for index in range(num)])


def _texts(source: Path) -> Iterator[str]:
    with source.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield next(row[field] for field in FIELDS if field in row)
