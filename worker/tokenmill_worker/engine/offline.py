"""A list of prompts through an engine, answers in the same order. Knows the engine only as steps and events."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from tokenmill_worker.engine.api import (
    Completion,
    EngineRequest,
    InvalidRequestError,
    Logprobs,
    RequestOutput,
    RowError,
    SamplingParams,
    TokenEvent,
    Usage,
)
from tokenmill_worker.engine.batch import Tokenizer

Prompts = Sequence[str | Sequence[int]] | str


class Steps(Protocol):
    """What a run needs of an engine."""

    def add_request(self, request: EngineRequest) -> None: ...

    def drop(self, request_id: str) -> None: ...

    def step(self) -> list[TokenEvent]: ...


def offline_requests(
    prompts: Prompts, params: SamplingParams | Sequence[SamplingParams], tokenizer: Tokenizer
) -> list[EngineRequest]:
    """One request per prompt, its id by its index: so an unseeded draw is the same in every run of the same list."""
    prompts = [prompts] if isinstance(prompts, str) else prompts
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    if len(each) != len(prompts):
        raise InvalidRequestError(f"{len(prompts)} prompts, but {len(each)} sampling params", param="params")
    return [
        EngineRequest(
            request_id=f"prompt-{index}",
            prompt_token_ids=tokenizer.encode(prompt) if isinstance(prompt, str) else prompt,
            params=own,
        )
        for index, (prompt, own) in enumerate(zip(prompts, each, strict=True))
    ]


def run_offline(engine: Steps, requests: Sequence[EngineRequest], *, max_active: int) -> list[RequestOutput]:
    """All requests to their end, at most `max_active` of them inside the engine at a time."""
    drafts = {request.request_id: OutputDraft(request) for request in requests}
    to_come = iter(requests)
    active: set[str] = set()
    try:
        while _fill(engine, to_come, active, max_active):
            for event in engine.step():
                drafts[event.request_id].add(event)
                if event.usage is not None:
                    active.discard(event.request_id)
    finally:
        for request_id in active:  # interrupted
            engine.drop(request_id)
    return [draft.output() for draft in drafts.values()]


def _fill(engine: Steps, to_come: Iterator[EngineRequest], active: set[str], max_active: int) -> bool:
    """Add requests while there is room; False when none is left anywhere."""
    while len(active) < max_active and (request := next(to_come, None)) is not None:
        engine.add_request(request)
        active.add(request.request_id)
    return bool(active)


class OutputDraft:
    """A RequestOutput that grows with the request's events."""

    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        self._choices = [_ChoiceDraft() for _ in range(request.params.n)]
        self._usage: Usage | None = None
        self._error: RowError | None = None

    def add(self, event: TokenEvent) -> None:
        self._choices[event.index].add(event)
        self._usage = event.usage or self._usage
        self._error = event.error or self._error

    def output(self) -> RequestOutput:
        assert self._usage is not None, "the request's last event has not come yet"
        return RequestOutput(
            request_id=self._request.request_id,
            prompt_token_ids=list(self._request.prompt_token_ids),
            choices=[choice.completion(index) for index, choice in enumerate(self._choices)],
            usage=self._usage,
            error=self._error,
        )


class _ChoiceDraft:
    def __init__(self) -> None:
        self._events: list[TokenEvent] = []

    def add(self, event: TokenEvent) -> None:
        assert event.offset == sum(len(earlier.token_ids) for earlier in self._events), "a token was lost or doubled"
        self._events.append(event)

    def completion(self, index: int) -> Completion:
        reason = self._events[-1].finish_reason
        assert reason is not None, "a choice's last event says why it ended"
        logprobs: Iterable[Logprobs] = (logprob for event in self._events for logprob in event.logprobs)
        return Completion(
            index=index,
            token_ids=[token_id for event in self._events for token_id in event.token_ids],
            text="".join(event.text for event in self._events),
            finish_reason=reason,
            logprobs=list(logprobs),
        )
