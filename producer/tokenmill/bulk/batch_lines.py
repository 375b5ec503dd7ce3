"""Lines of OpenAI Batch files: {"custom_id", "method", "url", "body"}. Knows no files and no queue."""

from tokenmill.bulk.prompts import PromptError
from tokenmill.bulk.rows import JSON, Fields
from tokenmill.wire.messages.request import IGNORED_FIELDS, Request

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
URLS = (CHAT, COMPLETIONS)

# Names that a request has beside OpenAI's; in a body they are as unknown as they are there.
_OWN = Request.model_fields.keys() - {"prompt", "messages", "model"} | {"x"}


def is_batch_line(fields: Fields) -> bool:
    return fields.keys() >= {"custom_id", "method", "url", "body"} and isinstance(fields["body"], dict)


def render_batch_line(fields: Fields) -> Fields:
    """The body's fields, as a request's. PromptError: nothing that can be run here."""
    custom_id, method, url = fields.get("custom_id"), fields.get("method"), fields.get("url")
    if not isinstance(custom_id, str) or not custom_id:
        raise PromptError("custom_id must be a string that is not empty")
    if method != "POST":
        raise PromptError(f"method must be POST, got {method!r}")
    if url not in URLS:
        raise PromptError(f"url {url!r} is not supported; there are {' and '.join(URLS)}")
    body = fields.get("body")
    if not isinstance(body, dict):
        raise PromptError("body must be an object")
    return _request_fields(body, needed="messages" if url == CHAT else "prompt")


def _request_fields(body: Fields, *, needed: str) -> Fields:
    given: Fields = {name: value for name, value in body.items() if value is not None and name not in IGNORED_FIELDS}
    if unknown := given.keys() & _OWN:
        raise PromptError(f"unknown field {min(unknown)!r} in the body")
    if needed not in given:
        raise PromptError(f"the body has no {needed!r}")
    if "max_tokens" not in given and "max_completion_tokens" in given:
        given["max_tokens"] = given.pop("max_completion_tokens")
    if "prompt" in given:
        given["prompt"] = _one_prompt(given["prompt"])
    return given


def _one_prompt(prompt: JSON) -> JSON:
    """OpenAI takes a list of prompts, too; each would be a completion of its own under one custom_id."""
    if not isinstance(prompt, list) or not any(isinstance(part, (str, list)) for part in prompt):
        return prompt
    if len(prompt) > 1:
        raise PromptError("a list of prompts is not supported; give each a line of its own")
    return prompt[0]
