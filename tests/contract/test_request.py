"""What a request may say, in both spellings: a client's keyword arguments and a producer's JSON body."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.wire.errors import DecodeError, InvalidRequestError
from tokenmill.wire.keys import MAX_BODY_BYTES
from tokenmill.wire.messages import Request, RequestDecoder, SamplingParams, check_request_id

TURN = {"role": "user", "content": "hi"}

# (fields beside or instead of the prompt, the field that the error must name)
REFUSED: list[tuple[dict[str, object], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": [1, True]}, "prompt"),
    ({"prompt": [1, -1]}, "prompt"),
    ({"prompt": ["a", "b"]}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"messages": [TURN]}, "prompt"),
    ({"prompt": None, "messages": []}, "messages"),
    ({"prompt": None, "messages": "hi"}, "messages"),
    ({"prompt": None, "messages": [{"role": "user"}]}, "messages[0].content"),
    ({"prompt": None, "messages": [TURN, {"role": "bot", "content": "x"}]}, "messages[1].role"),
    ({"prompt": None, "messages": [{**TURN, "name": "bob"}]}, "messages[0].name"),
    ({"prompt": None, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ({"model": ""}, "model"),
    ({"model": 5}, "model"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 8.0}, "max_tokens"),
    ({"max_tokens": "8"}, "max_tokens"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens"),
    ({"max_tokens": 1, "min_tokens": 2}, "min_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": math.nan}, "temperature"),
    ({"temperature": math.inf}, "temperature"),
    ({"temperature": False}, "temperature"),
    ({"temperature": "0.5"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"stop": ""}, "stop[0]"),
    ({"stop": ["a", 5]}, "stop[1]"),
    ({"stop": 5}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"seed": 2**64}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"n": 0}, "n"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 5}, "top_logprobs"),
    ({"logit_bias": {"5": 101}}, "logit_bias[5]"),
    ({"logit_bias": {"five": 1}}, "logit_bias.five"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"temprature": 1}, "temprature"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{}]}, "functions"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {}}, "audio"),
    ({"prediction": {}}, "prediction"),
    ({"suffix": "x"}, "suffix"),
    ({"echo": True}, "echo"),
    ({"best_of": 2}, "best_of"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
]

REFUSED_OPTIONS: list[tuple[dict[str, object], str]] = [
    ({"priority": "urgent"}, "priority"),
    ({"deadline_s": 0}, "deadline_s"),
    ({"deadline_s": math.nan}, "deadline_s"),
    ({"group": "a b"}, "group"),
    ({"stream": "tokens"}, "stream"),
    ({"result_ttl_s": 0}, "result_ttl_s"),
    ({"result_ttl_s": True}, "result_ttl_s"),
    ({"traceparent": "00-1-2"}, "traceparent"),
    ({"on_detach": "explode"}, "on_detach"),
]


@pytest.mark.parametrize(("fields", "param"), [*REFUSED, *REFUSED_OPTIONS])
def test_the_client_refuses_a_bad_field_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Request.build(**({"prompt": "hello"} | fields))
    assert caught.value.param == param
    assert param.split("[")[0].split(".")[0] in str(caught.value)


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_the_wire_refuses_a_bad_field_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Request.decode(json.dumps({"prompt": "hello"} | fields).encode())
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("options", "param"), [*REFUSED_OPTIONS, ({"colour": "red"}, "colour"), ({"prompt": 1}, "prompt")]
)
def test_the_wire_refuses_a_bad_option_under_x(options: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Request.decode(json.dumps({"prompt": "hello", "x": options}).encode())
    assert caught.value.param == f"x.{param}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"null",
        b"\xff\xfe",
        b'{"prompt": "\xc3"}',
        b'{"a":' * 100_000,
        b'{"seed": ' + b"9" * 5_000 + b"}",
    ],
)
def test_a_body_that_is_no_json_object_is_a_decode_error(body: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        Request.decode(body)
    assert caught.value.param == "body"


@pytest.mark.parametrize("name", ["\ud800", "x" * 300, "a.b", ""])
def test_an_unknown_field_of_any_name_is_told_in_printable_text(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Request.decode(json.dumps({"prompt": "a", name: 1}).encode())
    assert str(caught.value).encode()
    assert caught.value.code == "unknown_field"


def test_a_body_over_a_mebibyte_is_refused_on_both_sides() -> None:
    text = "é" * (MAX_BODY_BYTES // 2 + 1)
    with pytest.raises(InvalidRequestError, match="at most 1048576"):
        Request.build(prompt=text)
    with pytest.raises(InvalidRequestError, match="at most 1048576") as caught:
        Request.decode(text.encode())
    assert caught.value.code == "too_large"


def test_no_error_repeats_the_prompt() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Request.build(messages=[{"role": "user", "content": {"secret": "sesame"}}])
    assert "sesame" not in str(caught.value)


def test_fields_that_change_nothing_are_ignored() -> None:
    extras = {"user": "u", "metadata": {"a": 1}, "store": True, "stream": True, "stream_options": {}, "n": None}
    harmless = {"echo": False, "tools": [], "response_format": {"type": "text"}, "best_of": 1, "suffix": None}
    assert Request.decode(json.dumps({"prompt": "a", **extras, **harmless}).encode()) == Request.build(prompt="a")


def test_different_spellings_of_one_request_have_one_digest() -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    one = Request.build(messages=chat, max_completion_tokens=4, stop="x", logprobs=True, top_logprobs=2, temperature=0)
    other = Request.decode(
        b'{"x":{"priority":"normal"},"temperature":0.0,"stop":["x"],"logprobs":2,"max_tokens":4,'
        b'"messages":[{"content":"hi","role":"user"}]}'
    )
    assert one.digest == other.digest
    assert one.encode() == other.encode()


def test_a_retry_under_another_trace_is_the_same_request() -> None:
    traces = [f"00-{digit * 32}-{digit * 16}-01" for digit in "ab"]
    first, second = (Request.build(prompt="a", traceparent=trace) for trace in traces)
    assert first.digest == second.digest == Request.build(prompt="a").digest
    assert first.encode() != second.encode()


def test_another_parameter_is_another_request() -> None:
    others: list[dict[str, object]] = [{}, {"seed": 0}, {"seed": 1}, {"priority": "bulk"}]
    digests = {Request.build(prompt="a", **more).digest for more in others}
    assert len(digests) == 4


def test_sampling_params_given_whole_are_overridden_by_fields_beside_them() -> None:
    request = Request.build(prompt="a", sampling=SamplingParams(temperature=0.5, n=2), n=3)
    assert request.sampling.given() == {"temperature": 0.5, "n": 3}


@pytest.mark.parametrize("request_id", ["a", "A.b_c:d~e-f", "x" * 200, "2-1795414517689-0"])
def test_a_good_id_passes(request_id: str) -> None:
    assert check_request_id(request_id) == request_id


@pytest.mark.parametrize("request_id", ["", "x" * 201, "a b", "a/b", "a\n", "é", "{a}", 5, None])
def test_a_bad_id_is_refused(request_id: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_request_id(request_id)
    assert caught.value.param == "id"


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
floats = st.floats(0, 2, allow_nan=False)
requests = st.fixed_dictionaries(
    {"prompt": texts | st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8)},
    optional={
        "temperature": floats,
        "top_p": st.floats(0.01, 1),
        "max_tokens": st.integers(1, 2**31 - 1),
        "seed": st.integers(-(2**63), 2**64 - 1),
        "stop": st.lists(texts, max_size=3),
        "logit_bias": st.dictionaries(st.integers(0, 50_000), st.floats(-100, 100), max_size=3),
        "n": st.integers(1, 128),
        "priority": st.sampled_from(["high", "normal", "bulk"]),
        "deadline_s": st.floats(0.001, 1e6),
        "stream": st.sampled_from(["delta", "final"]),
    },
)


@given(requests)
@settings(max_examples=150, deadline=None)
def test_encode_and_decode_are_inverse(fields: dict[str, object]) -> None:
    request = Request.build(**fields)
    again = Request.decode(request.encode())
    assert again == request
    assert again.encode() == request.encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
field_names = st.sampled_from(
    [
        "prompt",
        "messages",
        "x",
        "id",
        "stop",
        "logit_bias",
        "logprobs",
        "seed",
        "tools",
        "model",
        "max_tokens",
        "n",
        "?",
    ]
)


def refusal_of(body: bytes) -> InvalidRequestError | None:
    try:
        Request.decode(body)
    except InvalidRequestError as error:
        return error
    return None


@given(st.dictionaries(field_names, json_values, max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_json_object_is_a_request_or_a_clear_refusal(body: dict[str, object]) -> None:
    refusal = refusal_of(json.dumps(body).encode())
    assert refusal is None or (refusal.param is not None and str(refusal).encode())


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_request_or_a_clear_refusal(body: bytes) -> None:
    with pytest.raises((DecodeError, InvalidRequestError)):
        Request.decode(body)


def test_a_decoder_that_knows_the_kind_gives_what_a_full_look_gives() -> None:
    decoder = RequestDecoder()
    kinds: list[dict[str, object]] = [
        {},
        {"max_tokens": 1},
        {"stop": ["a"]},
        {"temperature": 1.0},
        {"model": "m", "x": {"stream": "final"}},
    ]
    for prompt in ("hi", "you", "h\u00e9\u6f22", "-"):
        for fields in kinds:
            body = Request.from_object({"prompt": prompt, **fields}).encode()
            decoded = decoder.decode(body)
            assert decoded == Request.decode(body)
            assert (decoded.encode(), decoded.digest) == (body, Request.decode(body).digest)


@pytest.mark.parametrize("prompt", ["", 5, [], None, "\ud800"])
def test_a_decoder_that_knows_the_kind_still_looks_at_the_prompt(prompt: object) -> None:
    decoder = RequestDecoder()
    decoder.decode(json.dumps({"prompt": "hi"}).encode())
    with pytest.raises(InvalidRequestError, match="prompt"):
        decoder.decode(json.dumps({"prompt": prompt}).encode())


def test_a_decoder_gives_equal_sampling_as_one_object() -> None:
    decoder = RequestDecoder()
    first, second = (decoder.decode(json.dumps({"prompt": prompt, "top_k": 3}).encode()) for prompt in ("a", "b"))
    assert first.sampling is second.sampling
