"""What an API key may still send: charged before a request is queued, corrected when its tokens are known.

Counted on the queue's server, so that all gateway processes share one count. Before, it is known only what a request
may take: its `max_tokens` for each of its choices, and a token for every four characters of its prompt.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenmill.gateway.auth import Caller, KeyBook
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.keyring import KeyLimits
from tokenmill.wire.messages import Usage
from tokenmill.wire.store import Admission

CHARS_PER_TOKEN = 4  # of English text; OpenAI counts its rate limits by the same rule
DEFAULT_MAX_TOKENS = 256  # the queue's own

_RATE, _QUOTA = "rate_limit_exceeded", "insufficient_quota"


@dataclass(slots=True)
class Charge:
    """What was charged for one request; `headers` tell what is left."""

    book: KeyBook
    key_id: str
    tokens: int
    day: str
    headers: Mapping[str, str]
    is_settled: bool = False

    async def settle(self, usage: Usage) -> None:
        """Once it is known what it took; a second time it does nothing."""
        if self.is_settled:
            return
        self.is_settled = True
        difference = usage.prompt_tokens + usage.completion_tokens - self.tokens
        await self.book.store.run(self.book.gate.settle(self.key_id, difference=difference, day=self.day))


async def charge(book: KeyBook | None, caller: Caller, fields: Mapping[str, Any]) -> Charge | None:
    """None: this caller has no limits. ApiError 429: one is reached."""
    if book is None or caller.key_id is None or not caller.limits.is_limited():
        return None
    tokens, limits = estimate(fields), caller.limits
    admission = await book.store.run(
        book.gate.admit(
            caller.key_id,
            requests_per_minute=limits.requests_per_minute or 0,
            tokens_per_minute=limits.tokens_per_minute or 0,
            tokens_per_day=limits.tokens_per_day or 0,
            tokens=tokens,
        )
    )
    headers = headers_of(admission, limits)
    if admission.verdict != "ok":
        raise _refusal(admission, limits, tokens, headers)
    return Charge(book, caller.key_id, tokens, admission.day, headers)


def estimate(fields: Mapping[str, Any]) -> int:
    """Tokens that a request may take at most, as far as that can be known without its tokenizer."""
    prompt = fields.get("messages") or fields.get("prompt") or ""
    is_ids = isinstance(prompt, list) and all(isinstance(token, int) for token in prompt)
    size = len(prompt) * CHARS_PER_TOKEN if is_ids else _size(prompt)
    longest = fields.get("max_completion_tokens") or fields.get("max_tokens")
    choices = fields.get("n")
    return math.ceil(size / CHARS_PER_TOKEN) + _count(longest, DEFAULT_MAX_TOKENS) * _count(choices, 1)


def _size(prompt: object) -> int:
    return len(prompt) if isinstance(prompt, str) else len(json.dumps(prompt, ensure_ascii=False, default=str))


def _count(value: object, otherwise: int) -> int:
    """What is no sensible number is the queue's to refuse."""
    return value if isinstance(value, int) and 0 < value < 1 << 31 else otherwise


def headers_of(admission: Admission, limits: KeyLimits) -> dict[str, str]:
    """OpenAI's x-ratelimit-*, of those limits that there are."""
    told: dict[str, str] = {}
    if limits.requests_per_minute is not None:
        told["x-ratelimit-limit-requests"] = str(limits.requests_per_minute)
        told["x-ratelimit-remaining-requests"] = str(admission.requests_left)
        told["x-ratelimit-reset-requests"] = duration(admission.requests_reset_ms)
    if limits.tokens_per_minute is not None:
        told["x-ratelimit-limit-tokens"] = str(limits.tokens_per_minute)
        told["x-ratelimit-remaining-tokens"] = str(admission.tokens_left)
        told["x-ratelimit-reset-tokens"] = duration(admission.tokens_reset_ms)
    return told


def duration(ms: int) -> str:
    """As OpenAI writes one: 20ms, 1.5s, 6m0s."""
    if ms < 1_000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    seconds = f"{rest_ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{minutes}m{seconds}" if minutes else seconds


def _refusal(admission: Admission, limits: KeyLimits, tokens: int, headers: Mapping[str, str]) -> ApiError:
    retry_s = max(1, math.ceil(admission.retry_ms / 1000))
    per_minute = f"{limits.tokens_per_minute} tokens per minute"
    messages = {
        "requests": f"Rate limit reached: {limits.requests_per_minute} requests per minute. Try again in {retry_s}s.",
        "tokens": f"Rate limit reached: {per_minute}, {tokens} asked for. Try again in {retry_s}s.",
        "never_minute": f"Request too large: {tokens} tokens of {per_minute}. Ask for fewer with max_tokens.",
        "day": f"You exceeded your quota of {limits.tokens_per_day} tokens a day; it is renewed in {retry_s}s.",
        "never_day": f"Request too large: {tokens} tokens of {limits.tokens_per_day} a day. Ask for fewer.",
    }
    is_quota = admission.verdict in ("day", "never_day")
    kind = _QUOTA if is_quota else ("requests" if admission.verdict == "requests" else "tokens")
    headers = {**headers, "Retry-After": str(retry_s), "x-should-retry": _should_retry(admission)}
    return ApiError(429, messages[admission.verdict], kind=kind, code=_QUOTA if is_quota else _RATE, headers=headers)


def _should_retry(admission: Admission) -> str:
    """OpenAI's clients heed it: no use in asking again soon where a day is used up, or where it can never pass."""
    return "true" if admission.verdict in ("requests", "tokens") else "false"
