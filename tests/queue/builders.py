"""Values that the queue's unit tests are made of, with all that a test does not care about filled in."""

from tokenmill.wire.keys import Lane
from tokenmill_worker.engine.api import EngineRequest, FinishReason, RowError, SamplingParams, TokenEvent, Usage
from tokenmill_worker.queue.admission import Admission, Tenure, ToldChoice


def tenure(request_id: str = "q-1", *, fence: int = 1, **fields: object) -> Tenure:
    base: dict[str, object] = {
        "worker": "w-1",
        "lane": Lane.NORMAL,
        "entry_id": f"{fence}-0",
        "request_id": request_id,
        "fence": fence,
        "accepted_ms": 0.0,
        "begun_ms": 0.0,
    }
    return Tenure(**(base | fields))  # type: ignore[arg-type]  # a test names what it means


def admission(
    held: Tenure | None = None,
    *,
    num_prompt_tokens: int = 3,
    n: int = 1,
    is_streaming: bool = True,
    logprobs: int | None = None,
    told: tuple[ToldChoice, ...] = (),
) -> Admission:
    held = held or tenure()
    return Admission(
        tenure=held,
        request=EngineRequest(
            request_id=held.request_id,
            prompt_token_ids=[1] * num_prompt_tokens,
            params=SamplingParams(n=n, logprobs=logprobs),
            resume=tuple(choice.resumed for choice in told),
        ),
        is_streaming=is_streaming,
        told=told,
    )


def event(
    text: str,
    *,
    offset: int = 0,
    index: int = 0,
    request_id: str = "q-1",
    ends: FinishReason | None = None,
    is_last: bool | None = None,
    error: RowError | None = None,
) -> TokenEvent:
    """One token for each character of `text`, its id the character's code."""
    return TokenEvent(
        request_id=request_id,
        index=index,
        offset=offset,
        token_ids=tuple(map(ord, text)),
        texts=tuple(text),
        finish_reason=ends,
        usage=Usage(3, offset + len(text), 0) if is_last or (ends and is_last is None) else None,
        error=error,
    )
