"""One request on its way through this worker, as frozen values. Knows no server and no thread."""

from dataclasses import dataclass

from tokenmill.wire.keys import Lane

from tokenmill_worker.engine.api import EngineRequest, FinishReason, ResumedChoice


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tenure:
    """This worker's hold on one request: what every later write about it must name. No two are equal.

    `fence` and `worker` are checked by the server at each write, so a tenure that was taken over can write nothing.
    `num_published` counts the tokens that earlier workers told, over all choices, in this `epoch`; the first of them at
    `first_token_ms`. Server ms.
    """

    worker: str
    lane: Lane
    entry_id: str
    request_id: str
    fence: int
    epoch: int = 0
    num_published: int = 0
    group: str | None = None
    accepted_ms: float
    begun_ms: float
    deadline_ms: float | None = None
    first_token_ms: float | None = None


@dataclass(frozen=True, slots=True)
class ToldChoice:
    """What readers already have of one choice."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None

    @property
    def resumed(self) -> ResumedChoice:
        return ResumedChoice(self.token_ids, self.finish_reason)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Admission:
    """A request that was claimed, read, templated, tokenized and found good: ready for the engine.

    `is_streaming`: its readers want deltas as they come; otherwise they get checkpoints and the end. `told`: one per
    choice when an earlier worker told something of it, else empty. `traceparent`: its producer's span (W3C).
    """

    tenure: Tenure
    request: EngineRequest
    is_streaming: bool = True
    told: tuple[ToldChoice, ...] = ()
    traceparent: str | None = None

    @property
    def num_rows(self) -> int:
        return self.request.params.n

    @property
    def num_tokens(self) -> int:
        """What its pages must hold at once: the prompt and what was told."""
        num_prompt = len(self.request.prompt_token_ids)
        return num_prompt + sum(len(choice.token_ids) for choice in self.told) if self.told else num_prompt
