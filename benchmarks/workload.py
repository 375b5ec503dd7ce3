"""The work that engines are measured on: real prompts and fixed output lengths. Knows no engine."""

import random
from dataclasses import dataclass

from tests.support.prompts import load_prompts

FEW_LENGTHS = (6, 50, 300)  # output tokens: an answer of a word, of a paragraph, of a page


@dataclass(frozen=True, slots=True)
class Workload:
    """`prompts` are user messages, to be put through the model's chat template; `max_tokens` one output length each."""

    source: str
    prompts: list[str]
    max_tokens: list[int]
    system: str | None = None

    @property
    def num_output_tokens(self) -> int:
        return sum(self.max_tokens)

    def messages(self) -> list[list[dict[str, str]]]:
        leading = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [[*leading, {"role": "user", "content": text}] for text in self.prompts]


def workload(num: int, *, seed: int = 0, scale: float = 1.0) -> Workload:
    """Workload A of the project's anchors: log-normal output lengths (mean about 122, 16 to 384), times `scale`."""
    source, prompts = load_prompts(num)
    rng = random.Random(seed)
    lengths = [max(16, min(384, int(rng.lognormvariate(4.6, 0.7)))) for _ in prompts]
    return Workload(source.name, prompts, [max(1, int(length * scale)) for length in lengths])


def few_lengths(num: int = 24, *, seed: int = 0) -> Workload:
    """A few requests of very different lengths: a third each of FEW_LENGTHS, shuffled."""
    source, prompts = load_prompts(num)
    lengths = [FEW_LENGTHS[index % len(FEW_LENGTHS)] for index in range(num)]
    random.Random(seed).shuffle(lengths)
    return Workload(source.name, prompts, lengths)


def shared_prefix(num: int, *, system: str, num_output_tokens: int) -> Workload:
    """One system prompt, `num` questions."""
    source, prompts = load_prompts(num)
    return Workload(source.name, prompts, [num_output_tokens] * num, system)


def long_text(num_characters: int) -> str:
    """English prose-like text of the prompts themselves, repeated as often as it takes."""
    text = "\n".join(load_prompts(64).texts)
    return (text * (num_characters // len(text) + 1))[:num_characters]
