"""From what a producer asked to what the engine takes: names, templates, defaults, limits."""

from collections.abc import Mapping

import pytest
from tokenmill.wire.messages import Request
from tokenmill_worker.engine import Engine, EngineConfig
from tokenmill_worker.engine.api import InvalidRequestError, ResumedChoice
from tokenmill_worker.queue.admission import ToldChoice
from tokenmill_worker.queue.requests import RequestBuilder, ServedModel


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(EngineConfig(model="echo?max_model_len=64"))


def builder(engine: Engine, defaults: Mapping[str, float | int] | None = None) -> RequestBuilder:
    return RequestBuilder(ServedModel({"echo", "alias"}, engine.tokenizer, defaults or {}, engine))


def test_a_prompt_is_tokenized_as_it_is(engine: Engine) -> None:
    request = builder(engine).build("q-1", Request.build(prompt="hi"))
    assert list(request.prompt_token_ids) == engine.tokenizer.encode("hi")


def test_token_ids_are_taken_as_they_are(engine: Engine) -> None:
    assert list(builder(engine).build("q-1", Request.build(prompt=[5, 6])).prompt_token_ids) == [5, 6]


def test_messages_go_through_the_models_template(engine: Engine) -> None:
    messages = [{"role": "user", "content": "hi"}]
    request = builder(engine).build("q-1", Request.build(messages=messages))
    assert list(request.prompt_token_ids) == engine.tokenizer.apply_chat_template(messages)


def test_messages_without_a_template_are_refused_with_what_to_do() -> None:
    engine = Engine(EngineConfig(model="echo"))
    engine.tokenizer.has_chat_template = False
    with pytest.raises(InvalidRequestError, match="send a prompt") as caught:
        builder(engine).build("q-1", Request.build(messages=[{"role": "user", "content": "hi"}]))
    assert caught.value.code == "no_chat_template"


def test_a_value_is_the_requests_own_else_the_models_else_openais(engine: Engine) -> None:
    defaults = {"temperature": 0.6, "top_p": 0.9}
    params = builder(engine, defaults).build("q-1", Request.build(prompt="hi", temperature=0.1)).params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.1, 0.9, 0, 256)


def test_stop_and_bias_reach_the_engine(engine: Engine) -> None:
    params = builder(engine).build("q-1", Request.build(prompt="hi", stop="x", logit_bias={"65": 2})).params
    assert (params.stop, params.logit_bias) == (("x",), {65: 2})


@pytest.mark.parametrize("name", ["echo", "alias", None])
def test_a_served_name_or_none_is_accepted(engine: Engine, name: str | None) -> None:
    builder(engine).build("q-1", Request.build(prompt="hi", model=name))


def test_another_models_name_is_refused_with_those_that_are_served(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError, match="it serves: alias, echo") as caught:
        builder(engine).build("q-1", Request.build(prompt="hi", model="gpt-9"))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_prompt_longer_than_the_model_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        builder(engine).build("q-1", Request.build(prompt="x" * 100))
    assert caught.value.code == "context_length_exceeded"


def test_priorities_rank_as_their_lanes_do(engine: Engine) -> None:
    ranks = [
        builder(engine).build("q", Request.build(prompt="hi", priority=p)).priority for p in ("high", "normal", "bulk")
    ]
    assert ranks == sorted(set(ranks))


def test_what_was_told_is_handed_to_the_engine(engine: Engine) -> None:
    told = (ToldChoice("ab", (97, 98)),)
    assert builder(engine).build("q-1", Request.build(prompt="hi"), told).resume == (ResumedChoice((97, 98)),)
