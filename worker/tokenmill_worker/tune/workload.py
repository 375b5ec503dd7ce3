"""The requests that are measured with: prompts of a dataset or of random tokens, and how long answers are."""

import csv
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

SIGMA = 0.7  # of `~N`: answers to everyday questions spread about so widely
NARROWEST, WIDEST = 1 / 8, 3.2  # times N: what lies beyond is cut
COLUMNS = ("prompt", "question", "text", "messages")
DEFAULT_PROMPT_TOKENS, DEFAULT_OUTPUT_TOKENS = "~90", "~122"  # questions of GSM8K through a chat template


class WorkloadError(Exception):
    """The workload was described in a way that cannot be read; the message says what would work."""


class Ask(NamedTuple):
    """One request: its prompt, and how many tokens its answer has."""

    prompt_token_ids: Sequence[int]
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of token counts: `122` always, `16-384` anything between, `~122` around it, log-normal."""

    text: str
    low: int
    high: int
    mu: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        number = re.fullmatch(r"(~?)(\d+)(?:-(\d+))?", text.strip())
        if number is None or (number[1] and number[3]):
            raise WorkloadError(f"{text!r} is no distribution of lengths: write 122, 16-384 or ~122")
        low = int(number[2])
        high = int(number[3] or low)
        if not 1 <= low <= high:
            raise WorkloadError(f"{text!r}: lengths are at least 1, and the second at least the first")
        if not number[1]:
            return cls(text, low, high)
        mu = math.log(low) - SIGMA**2 / 2  # so that the mean, before cutting, is what was written
        return cls(text, max(1, round(low * NARROWEST)), max(1, round(low * WIDEST)), mu)

    def draw(self, rng: random.Random) -> int:
        if self.mu is None:
            return rng.randint(self.low, self.high)
        return min(self.high, max(self.low, round(rng.lognormvariate(self.mu, SIGMA))))


class Encoder(Protocol):
    """What a tokenizer has to know here."""

    vocab_size: int
    has_chat_template: bool

    def encode(self, text: str) -> list[int]: ...

    def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> list[int]: ...


class Workload:
    """An endless stream of requests, the same one for each seed. `prompts` as Lengths: of random tokens."""

    def __init__(
        self,
        description: str,
        prompts: Sequence[Sequence[int]] | Lengths,
        output_tokens: Lengths,
        *,
        vocab_size: int,
        max_model_len: int,
        seed: int = 0,
    ) -> None:
        self.description = description
        self.seed = seed
        self._prompts, self._output_tokens = prompts, output_tokens
        self._vocab_size, self._max_model_len = vocab_size, max_model_len

    def asks(self, *, seed: int = 0) -> Iterator[Ask]:
        rng = random.Random(f"{self.seed} {seed}")
        while True:
            yield self.cut(Ask(self._prompt(rng), self._output_tokens.draw(rng)))

    def cut(self, ask: Ask) -> Ask:
        """What the model has room for."""
        prompt = ask.prompt_token_ids[: self._max_model_len - 1]
        return Ask(prompt, max(1, min(ask.num_output_tokens, self._max_model_len - len(prompt))))

    def means(self, *, num: int = 512) -> tuple[float, float]:
        """Tokens of a prompt and of an answer."""
        asks = self.asks(seed=-1)
        drawn = [next(asks) for _ in range(num)]
        return sum(len(ask.prompt_token_ids) for ask in drawn) / num, sum(ask.num_output_tokens for ask in drawn) / num

    def _prompt(self, rng: random.Random) -> Sequence[int]:
        if isinstance(self._prompts, Lengths):
            return [rng.randrange(self._vocab_size) for _ in range(self._prompts.draw(rng))]
        return rng.choice(self._prompts)


def random_workload(
    prompt_tokens: str, output_tokens: str, *, vocab_size: int, max_model_len: int, seed: int = 0
) -> Workload:
    description = f"prompts of {prompt_tokens} random tokens, answers of {output_tokens}"
    prompts, outputs = Lengths.parse(prompt_tokens), Lengths.parse(output_tokens)
    return Workload(description, prompts, outputs, vocab_size=vocab_size, max_model_len=max_model_len, seed=seed)


def dataset_workload(
    file: Path,
    column: str | None,
    output_tokens: str,
    tokenizer: Encoder,
    *,
    max_model_len: int,
    seed: int = 0,
    limit: int = 2_000,
) -> Workload:
    """At most `limit` rows of the file, through the chat template where the model has one."""
    prompts = [_token_ids(text, tokenizer) for text in read_column(file, column, limit=limit)]
    return Workload(
        f"{len(prompts)} prompts of {file.name}, answers of {output_tokens} tokens",
        prompts,
        Lengths.parse(output_tokens),
        vocab_size=tokenizer.vocab_size,
        max_model_len=max_model_len,
        seed=seed,
    )


def _token_ids(text: str, tokenizer: Encoder) -> list[int]:
    if tokenizer.has_chat_template:
        return tokenizer.apply_chat_template([{"role": "user", "content": text}])
    return tokenizer.encode(text)


def read_column(file: Path, column: str | None, *, limit: int) -> list[str]:
    """Texts of a .jsonl, .csv or .txt file (a line each). Raises WorkloadError that says what is missing."""
    try:
        texts = [text for text in _texts(file, column, limit) if text.strip()]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise WorkloadError(f"cannot read {file}: {error}") from error
    if not texts:
        raise WorkloadError(f"{file} has no prompt" + (f" in column {column!r}" if column else ""))
    return texts


def _texts(file: Path, column: str | None, limit: int) -> Iterator[str]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        if file.suffix == ".txt":
            yield from (line for line, _ in zip(lines, range(limit), strict=False))
            return
        rows = csv.DictReader(lines) if file.suffix == ".csv" else (json.loads(line) for line in lines if line.strip())
        for row, _ in zip(rows, range(limit), strict=False):
            yield _text(row, column, file)


def _text(row: object, column: str | None, file: Path) -> str:
    if not isinstance(row, dict):
        raise WorkloadError(f"{file}: a row is no object; give .jsonl with objects, .csv or .txt")
    names = [column] if column else COLUMNS
    name = next((name for name in names if name in row), None)
    if name is None:
        own = ", ".join(map(str, row))
        raise WorkloadError(f"{file} has no column {' or '.join(names)}; it has {own}: use --column")
    value = row[name]
    if isinstance(value, list):  # messages: their texts, one after the other
        return "\n".join(str(message.get("content", "")) for message in value if isinstance(message, dict))
    return str(value)
