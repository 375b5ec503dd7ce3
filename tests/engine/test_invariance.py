"""A request's answer depends on the request alone: not on neighbours, chunks, cache hits, preemptions or restarts."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill_worker.engine.api import Completion, EngineRequest, RequestOutput, ResumedChoice, SamplingParams
from tokenmill_worker.engine.engine import Engine

from tests.engine.harness import Spy, finish, make_engine, make_request

MAX_TOKENS = 45
PARAMS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, logprobs=2),
    "sampled": SamplingParams(max_tokens=MAX_TOKENS, logprobs=0),
    "seeded, filtered": SamplingParams(
        max_tokens=MAX_TOKENS, seed=3, temperature=1.3, top_k=6, top_p=0.9, min_p=0.02, logprobs=1
    ),
    "penalties": SamplingParams(
        max_tokens=MAX_TOKENS, repetition_penalty=1.4, presence_penalty=0.7, frequency_penalty=0.4, logprobs=1
    ),
    "bias": SamplingParams(max_tokens=MAX_TOKENS, logit_bias={0xFF: 33.0, ord("e"): -5.0}, logprobs=1),
    "stop strings": SamplingParams(max_tokens=MAX_TOKENS, stop=("e", " s", "ou"), min_tokens=9, logprobs=1),
    "stop token": SamplingParams(max_tokens=MAX_TOKENS, stop_token_ids=(ord("s"), ord("t")), min_tokens=4, logprobs=1),
    "three choices": SamplingParams(max_tokens=MAX_TOKENS, n=3, stop=("ae",), logprobs=1),
}
PROMPT = "Why is the sky blue? " * 4  # 84 tokens: two full pages and a part of a third
every_params = pytest.mark.parametrize("name", PARAMS)


def request(name: str, resume: tuple[ResumedChoice, ...] = ()) -> EngineRequest:
    return make_request(PROMPT, PARAMS[name], request_id="subject", resume=resume)


@cache
def alone(name: str) -> RequestOutput:
    """The answer in an engine of its own, one chunk, no prefix cache."""
    engine = make_engine(max_num_batched_tokens=512, enable_prefix_caching=False)
    return finish(engine, request(name))["subject"]


def assert_same(output: RequestOutput, expected: RequestOutput) -> None:
    """Tokens, text, reasons and logprobs, bit for bit."""
    assert output.choices == expected.choices
    assert output.usage.completion_tokens == expected.usage.completion_tokens


def neighbours(count: int, *, priority: int = 0, prefix: str = "") -> list[EngineRequest]:
    return [
        make_request(
            f"{prefix}neighbour {index} " * (1 + index % 4),
            SamplingParams(max_tokens=5 + 9 * index % 50, n=1 + index % 2),
            request_id=f"n{index}",
            priority=priority,
        )
        for index in range(count)
    ]


@every_params
def test_among_others(name: str) -> None:
    others = neighbours(12)
    outputs = finish(make_engine(max_num_seqs=6), *others[:6], request(name), *others[6:])
    assert_same(outputs["subject"], alone(name))


@every_params
@pytest.mark.parametrize("budget", [1, 7, 32, 512])
def test_in_chunks(name: str, budget: int) -> None:
    outputs = finish(make_engine(max_num_batched_tokens=budget), *neighbours(2), request(name))
    assert_same(outputs["subject"], alone(name))


@every_params
def test_after_a_prefix_hit(name: str) -> None:
    engine = make_engine()
    finish(engine, request(name), *neighbours(3, prefix=PROMPT))
    again = finish(engine, request(name))["subject"]
    assert again.usage.cached_tokens == 64
    assert_same(again, alone(name))


@every_params
@pytest.mark.parametrize("caching", [True, False])
def test_preempted_again_and_again(name: str, caching: bool) -> None:
    engine = make_engine(num_pages=6, enable_prefix_caching=caching)
    engine._scheduler._observed_output = 1.0  # admits too much, as when outputs suddenly get longer
    urgent = [make_request("u" * 40, SamplingParams(max_tokens=60), request_id=f"u{i}", priority=-1) for i in range(4)]
    outputs = finish(engine, request(name), *urgent)
    assert engine.statistics().num_preemptions > 0
    assert_same(outputs["subject"], alone(name))


def told(choice: Completion, count: int) -> ResumedChoice:
    is_whole = count >= len(choice.token_ids)
    return ResumedChoice(tuple(choice.token_ids[:count]), choice.finish_reason if is_whole else None)


@cache
def texts_alone(name: str) -> list[list[str]]:
    """The text of each token of each choice, as an uninterrupted run tells it."""
    engine = make_engine()
    engine.add_request(request(name))
    texts: list[list[str]] = [[] for _ in range(PARAMS[name].n)]
    while engine.has_work():
        for event in engine.step():
            texts[event.index] += event.texts
    return texts


def assert_continued(output: RequestOutput, name: str, resume: tuple[ResumedChoice, ...]) -> None:
    """What was resumed and what came after are together the uninterrupted answer."""
    expected = alone(name)
    for choice, whole, before in zip(output.choices, expected.choices, resume, strict=True):
        count = len(before.token_ids)
        assert [*before.token_ids, *choice.token_ids] == whole.token_ids
        assert choice.finish_reason == whole.finish_reason
        assert choice.logprobs == whole.logprobs[count:]
        assert choice.text == "".join(texts_alone(name)[choice.index][count:])
    assert output.usage.completion_tokens == expected.usage.completion_tokens


def run_resumed(engine: Engine, resumed: EngineRequest, resume: tuple[ResumedChoice, ...]) -> RequestOutput:
    """Like `finish`, for a request whose events begin after the resumed tokens."""
    choices = [Completion(index, [], "", before.finish_reason or "error", []) for index, before in enumerate(resume)]
    usage = None
    engine.add_request(resumed)
    while engine.has_work():
        for event in engine.step():
            choice = choices[event.index]
            assert event.offset == len(resume[event.index].token_ids) + len(choice.token_ids)
            choices[event.index] = Completion(
                event.index,
                [*choice.token_ids, *event.token_ids],
                choice.text + event.text,
                event.finish_reason or choice.finish_reason,
                [*choice.logprobs, *event.logprobs],
            )
            usage = event.usage or usage
        engine.check_integrity()
    assert usage is not None
    return RequestOutput(
        request_id="subject", prompt_token_ids=list(resumed.prompt_token_ids), choices=choices, usage=usage
    )


@every_params
def test_resumed_from_every_prefix(name: str) -> None:
    expected = alone(name)
    longest = max(len(choice.token_ids) for choice in expected.choices)
    for count in range(longest + 1):
        resume = tuple(told(choice, count) for choice in expected.choices)
        output = run_resumed(make_engine(), request(name, resume), resume)
        assert_continued(output, name, resume)


@settings(max_examples=25)
@given(counts=st.tuples(*[st.integers(0, MAX_TOKENS)] * 3), budget=st.sampled_from([3, 40, 512]))
def test_choices_resumed_at_different_points(counts: tuple[int, int, int], budget: int) -> None:
    expected = alone("three choices")
    resume = tuple(told(choice, count) for choice, count in zip(expected.choices, counts, strict=True))
    engine = make_engine(max_num_batched_tokens=budget)
    output = run_resumed(engine, request("three choices", resume), resume)
    assert_continued(output, "three choices", resume)


def test_choices_of_one_request_share_the_prompt_and_differ() -> None:
    spy = Spy(make_engine()._runner)
    output = finish(make_engine(runner=spy), request("three choices"))["subject"]
    assert len({choice.text for choice in output.choices}) == 3
    num_prefilled = sum(int(batch.num_tokens) for batch in spy.batches[:2])
    assert num_prefilled == 84  # 64 + 20: the prompt once
    assert [len(batch.page_copies) for batch in spy.batches[:4]] == [0, 0, 2, 0]


def test_the_first_choice_is_what_a_single_one_would_be() -> None:
    params = PARAMS["three choices"]
    single = SamplingParams(max_tokens=MAX_TOKENS, stop=params.stop, logprobs=1)
    output = finish(make_engine(), make_request(PROMPT, single, request_id="subject"))["subject"]
    assert output.choices[0] == alone("three choices").choices[0]


@pytest.mark.parametrize("num_prompt", [1, 2, 31, 32, 33, 64, 65])
def test_choices_fork_right_at_every_page_boundary(num_prompt: int) -> None:
    params = SamplingParams(max_tokens=40, n=3, seed=5)
    forked = finish(make_engine(), make_request([9] * num_prompt, params))["r"]
    tight = make_engine(max_num_seqs=3, num_pages=5, max_num_batched_tokens=16, enable_prefix_caching=False)
    recomputed = finish(tight, make_request([9] * num_prompt, params))["r"]
    assert forked.choices == recomputed.choices


@settings(max_examples=20)
@given(data=st.data())
def test_any_mix_in_any_engine(data: st.DataObject) -> None:
    """Random requests in a random engine answer as each does alone; nothing hangs, nothing leaks."""
    engine = make_engine(
        max_num_seqs=data.draw(st.integers(3, 6), label="rows"),
        max_num_batched_tokens=data.draw(st.sampled_from([1, 5, 33, 200]), label="budget"),
        num_pages=data.draw(st.integers(5, 14), label="pages"),
        enable_prefix_caching=data.draw(st.booleans(), label="caching"),
    )
    names = data.draw(st.lists(st.sampled_from(sorted(PARAMS)), min_size=1, max_size=5), label="requests")
    requests = [
        EngineRequest(
            request_id=f"{index}",
            prompt_token_ids=request(name).prompt_token_ids,
            params=PARAMS[name],
            priority=data.draw(st.integers(0, 2), label="priority"),
        )
        for index, name in enumerate(names)
    ]
    outputs = finish(engine, *requests)
    for one in requests:
        expected = finish(make_engine(max_num_batched_tokens=512, enable_prefix_caching=False), one)[one.request_id]
        assert_same(outputs[one.request_id], expected)
    assert engine.statistics().num_free_pages == engine.statistics().num_pages
