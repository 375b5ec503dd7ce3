"""From a request on the wire to what the engine takes: model name, template, token ids, defaults. Knows no server."""

from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from tokenmill.wire.messages import Priority, Request
from tokenmill.wire.messages import SamplingParams as WireParams
from tokenmill.wire.messages.request import MAX_KINDS

from tokenmill_worker.engine.api import EngineRequest, InvalidRequestError, SamplingParams
from tokenmill_worker.engine.batch import Tokenizer
from tokenmill_worker.engine.uniform import seed_from_text
from tokenmill_worker.queue.admission import ToldChoice

_RANKS: dict[Priority, int] = {"high": 0, "normal": 1, "bulk": 2}


class Validates(Protocol):
    """The part of the engine that knows what it could ever run; may be asked from any thread."""

    def validate(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None: ...


class ServedModel(NamedTuple):
    """What requests are checked against. `names`: what a request may call it; `defaults`: its generation_config."""

    names: Collection[str]
    tokenizer: Tokenizer
    defaults: Mapping[str, float | int]
    engine: Validates


class RequestBuilder:
    """Raises InvalidRequestError for whatever this worker could never run; disturbs nothing."""

    def __init__(self, model: ServedModel, name: Callable[[str], str] = str) -> None:
        """`name`: what the engine shall call a request."""
        self._model = model
        self._name = name
        self._known: dict[int, tuple[WireParams, SamplingParams]] = {}  # by identity: a decoder gives equals as one

    def build(
        self, request_id: str, request: Request, told: tuple[ToldChoice, ...] = (), *, prompt: str | None = None
    ) -> EngineRequest:
        """`told` is what earlier workers told of it, one per choice, or empty; `prompt`: to take for its own."""
        self._check_model(request.model)
        params = self._params(request)
        token_ids = self._token_ids(request) if prompt is None else self._model.tokenizer.encode(prompt)
        prompt_token_ids = array("i", token_ids)  # which numpy takes as it is, here and in the engine
        self._model.engine.validate(prompt_token_ids, params)
        name = self._name(request_id)
        if name != request_id and params.seed is None:
            params = replace(params, seed=seed_from_text(request_id))  # what is drawn depends on the id alone
        return EngineRequest(
            request_id=name,
            prompt_token_ids=prompt_token_ids,
            params=params,
            priority=_RANKS[request.priority],
            resume=tuple(choice.resumed for choice in told),
        )

    def _check_model(self, name: str | None) -> None:
        if name is not None and name not in self._model.names:
            served = ", ".join(sorted(self._model.names))
            raise InvalidRequestError(
                f"this queue does not serve model {name!r}, it serves: {served}",
                param="model",
                code="model_not_found",
            )

    def _params(self, request: Request) -> SamplingParams:
        """The request's own values, else the model's, else OpenAI's (which are the engine's own defaults)."""
        known = self._known.get(id(request.sampling))
        if known is not None:
            return known[1]
        given = request.sampling.given()
        params = SamplingParams(**{**self._model.defaults, **given})  # type: ignore[arg-type]  # both sides are checked
        if len(self._known) >= MAX_KINDS:
            self._known.clear()
        self._known[id(request.sampling)] = (request.sampling, params)  # held, so that no other gets its identity
        return params

    def _token_ids(self, request: Request) -> Sequence[int]:
        if request.messages is not None:
            return self._templated(request)
        if isinstance(request.prompt, str):
            return self._model.tokenizer.encode(request.prompt)
        return request.prompt or ()

    def _templated(self, request: Request) -> Sequence[int]:
        if not self._model.tokenizer.has_chat_template:
            raise InvalidRequestError(
                "this model has no chat template: send a prompt instead of messages",
                param="messages",
                code="no_chat_template",
            )
        turns = [{"role": turn.role, "content": turn.content} for turn in request.messages or ()]
        return self._model.tokenizer.apply_chat_template(turns)
