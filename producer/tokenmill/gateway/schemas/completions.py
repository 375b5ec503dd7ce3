"""The body of POST /v1/completions."""

from typing import Annotated, Any

from pydantic import WithJsonSchema

from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.schemas.base import GenerationBody

MAX_PROMPTS = 128  # of one call, each a job of its own; what has more is a batch

_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_PROMPT = {"anyOf": [{"type": "string"}, _TEXTS, _IDS, {"type": "array", "items": _IDS}]}

Prompt = str | list[int]


class CompletionBody(GenerationBody):
    """`prompt`: a text, a list of token ids, or a list of either."""

    prompt: Annotated[Any, WithJsonSchema(_PROMPT)]
    echo: bool | None = None
    logprobs: int | None = None

    def prompts(self) -> list[Prompt]:
        """One or several; the queue looks at what is in them. ApiError 400: none, or too many."""
        given = self.prompt
        if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int)):
            return [given]
        if not isinstance(given, list) or not given:
            message = "prompt is a string, a list of token ids, or a list of either"
            raise ApiError(400, message, param="prompt", code="invalid_value")
        if len(given) > MAX_PROMPTS:
            message = f"at most {MAX_PROMPTS} prompts in one call, got {len(given)}: POST /v1/batches takes more"
            raise ApiError(400, message, param="prompt", code="too_many_prompts")
        return given

    def bodies(self) -> list[dict[str, Any]]:
        """One for each prompt, as `AsyncClient.submit` takes them."""
        fields = self.fields()
        fields.pop("echo", None)
        return [{**fields, "prompt": prompt} for prompt in self.prompts()]

    def echoes(self) -> list[str]:
        """What each choice begins with; empty unless asked for."""
        if not self.echo:
            return []
        if self.logprobs is not None:
            message = "echo with logprobs is not supported: prompts' tokens have no probabilities here"
            raise ApiError(400, message, param="echo", code="unsupported_field")
        prompts = [prompt for prompt in self.prompts() if isinstance(prompt, str)]
        if len(prompts) < len(self.prompts()):
            message = "echo of token ids is not supported: send the prompt as text"
            raise ApiError(400, message, param="echo", code="unsupported_field")
        return [prompt for prompt in prompts for _ in range(self.n or 1)]
