"""A request between `add_request` and its last event: its choices, and when it is over. Knows no schedule."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenmill_worker.engine.api import EngineRequest, ResumedChoice, Usage
from tokenmill_worker.engine.batch import Tokenizer
from tokenmill_worker.engine.sequence import Sequence
from tokenmill_worker.engine.transcript import Transcript
from tokenmill_worker.engine.uniform import choice_seed, seed_from_text


@dataclass(slots=True)
class Choice:
    """One of a request's n answers: `sequence` is what the scheduler sees, `transcript` what the caller reads."""

    sequence: Sequence
    transcript: Transcript

    @property
    def is_finished(self) -> bool:
        return self.transcript.finish_reason is not None


@dataclass(slots=True)
class ActiveRequest:
    """`parked` choices wait until the prompt is in the pages of the first one, to share it."""

    prompt_tokens: int
    choices: list[Choice]
    parked: list[Sequence] = field(default_factory=list)

    @classmethod
    def start(cls, request: EngineRequest, tokenizer: Tokenizer, *, max_total: int, arrival: int) -> "ActiveRequest":
        """All choices, each with what an earlier worker told of it."""
        return cls(len(request.prompt_token_ids), list(_choices(request, tokenizer, max_total, arrival)))

    @property
    def unfinished(self) -> list[Choice]:
        return [choice for choice in self.choices if not choice.is_finished]

    def is_last_word(self, choice: Choice) -> bool:
        """Is the end of this choice the only thing left to tell?"""
        return choice.is_finished and all(other is choice or other.transcript.is_told for other in self.choices)

    def usage(self) -> Usage:
        admitted = [choice.sequence.num_cached_tokens for choice in self.choices]
        cached = next((tokens for tokens in admitted if tokens is not None), 0)  # later choices find the first one's
        return Usage(self.prompt_tokens, sum(choice.transcript.num_tokens for choice in self.choices), cached)


def _choices(request: EngineRequest, tokenizer: Tokenizer, max_total: int, arrival: int) -> Iterator[Choice]:
    params, prompt = request.params, request.prompt_token_ids
    eos_token_ids = () if params.ignore_eos else tuple(tokenizer.eos_token_ids)
    stop_token_ids = (*eos_token_ids, *params.stop_token_ids)
    seed = seed_from_text(request.request_id) if params.seed is None else params.seed
    siblings: list[Sequence] = []
    for index, told in enumerate(request.resume or [ResumedChoice()] * params.n):
        sequence = Sequence(
            prompt,
            params,
            max_total=max_total,
            request_id=request.request_id,
            rank=(request.priority, arrival, index),
            seed=choice_seed(seed, index),
            stop_token_ids=stop_token_ids,
            output_token_ids=told.token_ids,
            siblings=siblings,
        )
        transcript = Transcript(
            request.request_id,
            index,
            params,
            tokenizer,
            stop_token_ids=stop_token_ids,
            max_tokens=max_total - len(prompt),
        )
        transcript.replay(told.token_ids, told.finish_reason)
        yield Choice(sequence, transcript)
