"""What an engine can ever run: the checks that need no other request to be known. Pure, safe from any thread."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenmill_worker.engine.api import InvalidRequestError, ResumedChoice, SamplingParams
from tokenmill_worker.engine.batch import PAGE_SIZE
from tokenmill_worker.engine.pages import num_pages_for


@dataclass(frozen=True, slots=True)
class Validator:
    """The fixed sizes of a loaded model and its engine, and what they rule out."""

    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    num_pages: int

    def max_total(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> int:
        """Tokens that prompt and completion can reach together."""
        return min(len(prompt_token_ids) + params.max_tokens, self.max_model_len)

    def validate(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, resume: Sequence[ResumedChoice] = ()
    ) -> None:
        """Raises InvalidRequestError for a request that could never run here."""
        self._check_prompt(prompt_token_ids)
        self._check_pool(self.max_total(prompt_token_ids, params))
        self._check_ids("stop_token_ids", params.stop_token_ids)
        if params.logit_bias:
            self._check_ids("logit_bias", list(params.logit_bias))
        if params.n > self.max_num_seqs:
            raise InvalidRequestError(f"n must be at most {self.max_num_seqs} here, got {params.n}", param="n")
        self.validate_resume(prompt_token_ids, params, resume)

    def validate_resume(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, resume: Sequence[ResumedChoice]
    ) -> None:
        """The part of `validate` about what an earlier worker told."""
        if resume:
            self._check_resume(params, resume, self.max_total(prompt_token_ids, params) - len(prompt_token_ids))

    def _check_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        if not len(prompt_token_ids):
            raise InvalidRequestError("the prompt is empty", param="prompt")
        self._check_ids("prompt", prompt_token_ids)
        if len(prompt_token_ids) >= self.max_model_len:
            raise InvalidRequestError(
                f"the prompt has {len(prompt_token_ids)} tokens; with at least one to generate, "
                f"this model takes {self.max_model_len - 1}",
                param="prompt",
                code="context_length_exceeded",
            )

    def _check_pool(self, max_total: int) -> None:
        """The last token is never fed back, so its KV needs no place."""
        if num_pages_for(max_total - 1) > self.num_pages:
            raise InvalidRequestError(
                f"prompt and max_tokens may reach {max_total} tokens, "
                f"the KV pool holds {self.num_pages * PAGE_SIZE}: lower max_tokens, or raise kv_cache_tokens",
                param="max_tokens",
                code="context_length_exceeded",
            )

    def _check_ids(self, param: str, token_ids: Sequence[int]) -> None:
        if not len(token_ids):
            return
        try:
            ids = np.asarray(token_ids)
        except (OverflowError, ValueError) as error:
            raise InvalidRequestError(f"{param} must hold token ids: {error}", param=param) from error
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InvalidRequestError(f"{param} must hold integer token ids", param=param)
        if ids.dtype == np.int32 and ids.view(np.uint32).max() < self.vocab_size:  # a negative one is large, too
            return
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise InvalidRequestError(
                f"{param} has token id {wrong}, the vocabulary ends at {self.vocab_size - 1}", param=param
            )

    def _check_resume(self, params: SamplingParams, resume: Sequence[ResumedChoice], max_tokens: int) -> None:
        if len(resume) != params.n:
            raise InvalidRequestError(f"resume has {len(resume)} choices, n is {params.n}", param="resume")
        for choice in resume:
            self._check_ids("resume", choice.token_ids)
            if len(choice.token_ids) > max_tokens:
                raise InvalidRequestError(f"resume has more tokens than the {max_tokens} allowed", param="resume")
