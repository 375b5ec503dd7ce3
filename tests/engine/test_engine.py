import subprocess
import sys
from dataclasses import replace

import pytest
from tokenmill_worker.engine.api import (
    Capacity,
    EngineConfig,
    EngineError,
    EngineRequest,
    InvalidRequestError,
    ModelError,
    ResumedChoice,
    SamplingParams,
    TokenEvent,
    Usage,
)
from tokenmill_worker.engine.batch import PAGE_SIZE
from tokenmill_worker.engine.echo import EchoTokenizer
from tokenmill_worker.engine.engine import Engine

from tests.engine.harness import finish, make_engine, make_request

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


def steps(engine: Engine, count: int) -> list[TokenEvent]:
    events = []
    for _ in range(count):
        events += engine.step()
        engine.check_integrity()
    return events


# generate


def test_generate_answers_in_the_order_of_the_prompts() -> None:
    engine = Engine(EngineConfig(model="echo", max_num_seqs=4))
    prompts = [f"prompt {index}" for index in range(20)]
    params = [SamplingParams(temperature=0.0, max_tokens=1 + (index * 7) % 11) for index in range(20)]
    outputs = engine.generate(prompts, params)
    assert [bytes(output.prompt_token_ids).decode() for output in outputs] == prompts
    assert [len(output.token_ids) for output in outputs] == [one.max_tokens for one in params]
    assert not engine.has_work()
    assert engine.statistics().num_free_pages == engine.statistics().num_pages


def test_generate_takes_one_prompt_or_many_as_text_or_ids() -> None:
    engine = make_engine()
    from_text = engine.generate("héllo", GREEDY)
    from_ids = engine.generate([list("héllo".encode())], GREEDY)
    assert [output.text for output in from_text] == [output.text for output in from_ids]
    assert engine.generate([], GREEDY) == []


def test_generate_names_the_prompt_that_can_never_run_before_anything_runs() -> None:
    engine = make_engine(max_model_len=100)
    with pytest.raises(InvalidRequestError, match=r"^prompt 1: .*99") as caught:
        engine.generate(["fine", "x" * 100], GREEDY)
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
    assert engine.statistics().num_steps == 0


def test_generate_wants_one_params_or_one_each() -> None:
    with pytest.raises(InvalidRequestError, match="2 prompts, but 1"):
        make_engine().generate(["a", "b"], [GREEDY])


def test_generate_does_not_mix_with_requests_of_others() -> None:
    engine = make_engine()
    engine.add_request(make_request("a"))
    with pytest.raises(EngineError, match="nothing else to do"):
        engine.generate("b")


def test_generate_is_the_same_in_every_run_also_without_a_seed() -> None:
    params = SamplingParams(max_tokens=20)
    first, second = (make_engine().generate(["a", "a"], params) for _ in range(2))
    assert first == second
    assert first[0].text != first[1].text


# Validation


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ([], GREEDY, "prompt"),
        ([256], GREEDY, "prompt"),
        ([-1], GREEDY, "prompt"),
        ([2**70], GREEDY, "prompt"),
        ([1.5], GREEDY, "prompt"),
        (["a"], GREEDY, "prompt"),
        ([[1], [2, 3]], GREEDY, "prompt"),
        ([1] * 1024, GREEDY, "prompt"),
        ([1], SamplingParams(n=9), "n"),
        ([1], SamplingParams(logit_bias={300: 1.0}), "logit_bias"),
        ([1], SamplingParams(stop_token_ids=(300,)), "stop_token_ids"),
    ],
)
def test_a_request_that_can_never_run_is_refused_by_name(prompt: list[int], params: SamplingParams, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_engine().validate(prompt, params)
    assert caught.value.param == param


def test_a_request_larger_than_the_pool_is_refused_and_one_that_just_fits_finishes() -> None:
    engine = make_engine(num_pages=2)
    with pytest.raises(InvalidRequestError, match="KV pool holds 64"):
        engine.validate([1] * 10, SamplingParams(max_tokens=56))
    outputs = finish(engine, make_request([1] * 10, SamplingParams(max_tokens=55)))
    assert len(outputs["r"].token_ids) == 55


def test_a_second_request_with_the_same_id_is_refused_and_the_first_is_undisturbed() -> None:
    engine = make_engine()
    engine.add_request(make_request("a", GREEDY))
    with pytest.raises(InvalidRequestError, match="already running"):
        engine.add_request(make_request("b", GREEDY))
    engine.check_integrity()
    assert sum(len(event.token_ids) for event in steps(engine, 30)) == 24


@pytest.mark.parametrize(
    "field",
    [
        "scheduling_interval",
        "target_tpot_ms",
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_model_len",
        "kv_cache_tokens",
    ],
)
def test_a_config_that_leaves_no_room_is_refused(field: str) -> None:
    with pytest.raises(EngineError, match=field):
        replace(EngineConfig(), **{field: 0})  # type: ignore[arg-type]  # the test names fields


@pytest.mark.parametrize("model", ["echo?speed=9", "echo?step_ms=soon", "echo?max_model_len=1", "echo?step_ms=-1"])
def test_an_unknown_option_of_the_echo_model_is_refused(model: str) -> None:
    with pytest.raises(ModelError, match="echo"):
        Engine(EngineConfig(model=model))


def test_echo_options_and_config_set_the_longest_request() -> None:
    assert Engine(EngineConfig(model="echo?max_model_len=77")).max_model_len == 77
    assert Engine(EngineConfig(model="echo?max_model_len=77", max_model_len=50)).max_model_len == 50


# Ends


def test_a_choice_ends_where_the_model_ends() -> None:
    output = make_engine(max_model_len=50).generate("x" * 40, SamplingParams(max_tokens=30))[0]
    assert (len(output.token_ids), output.finish_reason) == (10, "length")


def test_a_stop_token_is_told_without_text() -> None:
    engine = make_engine()
    free = engine.generate("abc", GREEDY)[0]
    stop = free.token_ids[7]
    first = free.token_ids.index(stop)
    output = engine.generate("abc", SamplingParams(temperature=0.0, stop_token_ids=(stop,)))[0]
    assert output.token_ids == free.token_ids[: first + 1]
    assert output.text == EchoTokenizer().decode(free.token_ids[:first])
    assert output.finish_reason == "stop"


def test_a_stop_string_cuts_the_text_and_its_tokens_are_told() -> None:
    engine = make_engine()
    free = engine.generate("abc", GREEDY)[0]
    stop = free.text[5:8]
    output = engine.generate("abc", SamplingParams(temperature=0.0, max_tokens=24, stop=(stop,)))[0]
    assert output.text == free.text[: free.text.index(stop)]
    assert output.token_ids == free.token_ids[: len(output.token_ids)]
    assert EchoTokenizer().decode(output.token_ids).endswith(stop)
    assert output.finish_reason == "stop"


class EndingTokenizer(EchoTokenizer):
    """Every letter e ends the text."""

    eos_token_ids = frozenset(b"e")


def engine_that_ends() -> Engine:
    engine = make_engine()
    engine.tokenizer = EndingTokenizer()
    return engine


def test_the_end_of_sequence_token_stops_unless_it_is_ignored() -> None:
    params = SamplingParams(max_tokens=200, seed=1)
    output = engine_that_ends().generate("abc", params)[0]
    assert (output.token_ids[-1], output.finish_reason) == (ord("e"), "stop")
    assert ord("e") not in output.token_ids[:-1]
    ignoring = engine_that_ends().generate("abc", SamplingParams(max_tokens=200, seed=1, ignore_eos=True))[0]
    assert (len(ignoring.token_ids), ignoring.finish_reason) == (200, "length")


def test_neither_end_nor_stop_token_is_drawn_before_min_tokens() -> None:
    params = SamplingParams(max_tokens=100, min_tokens=60, seed=1, stop_token_ids=(ord(" "),))
    output = engine_that_ends().generate("abc", params)[0]
    assert not {ord("e"), ord(" ")} & set(output.token_ids[:60])
    assert output.finish_reason == "stop"


# Events


def test_events_tell_every_token_once_and_usage_at_the_end() -> None:
    engine = make_engine()
    engine.add_request(make_request("abc", SamplingParams(temperature=0.0, max_tokens=20)))
    events = steps(engine, 25)
    assert [event.offset for event in events[1:]] == [event.offset + len(event.token_ids) for event in events[:-1]]
    assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + ["length"]
    assert [event.usage for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].usage == Usage(prompt_tokens=3, completion_tokens=20, cached_tokens=0)
    assert all(len(event.token_ids) == len(event.texts) for event in events)


def test_the_usage_of_several_choices_comes_with_the_last_of_them() -> None:
    engine = make_engine()
    engine.add_request(make_request("abc", SamplingParams(max_tokens=5, n=3)))
    events = steps(engine, 12)
    assert sorted(event.index for event in events if event.finish_reason) == [0, 1, 2]
    assert [event.usage for event in events if event.usage] == [Usage(3, 15, 0)]
    assert events[-1].usage is not None


def test_choices_that_wait_for_a_row_are_not_counted_as_cached() -> None:
    engine = make_engine(max_num_seqs=3)
    engine.add_request(make_request("other", SamplingParams(max_tokens=90), request_id="other"))
    engine.add_request(make_request("x" * 100, SamplingParams(max_tokens=4, n=3)))
    usage = [event.usage for event in steps(engine, 40) if event.request_id == "r" and event.usage]
    assert usage == [Usage(100, 12, 0)]


def test_a_prefix_hit_is_counted_as_cached() -> None:
    engine = make_engine()
    for _ in range(2):
        output = engine.generate("x" * 100, GREEDY)[0]
    assert output.usage.cached_tokens == 3 * PAGE_SIZE
    assert engine.statistics().num_cached_tokens == 3 * PAGE_SIZE


def test_cancel_tells_what_was_held_back_at_the_next_step() -> None:
    engine = make_engine()
    free = engine.generate("one", GREEDY)[0]
    stop = free.text[:4] + "never"
    engine.add_request(make_request("one", SamplingParams(temperature=0.0, max_tokens=50, stop=(stop,))))
    assert steps(engine, 3) == []
    engine.cancel("r")
    (event,) = steps(engine, 1)
    assert (event.finish_reason, event.token_ids) == ("cancelled", tuple(free.token_ids[:3]))
    assert event.text == EchoTokenizer().decode(free.token_ids[:3])
    assert event.usage == Usage(3, 3, 0)
    assert not engine.has_work()


def test_a_waiting_request_gets_its_last_event_too() -> None:
    engine = make_engine(max_num_seqs=2)
    for name in ("a", "b", "c"):
        engine.add_request(make_request(name, SamplingParams(max_tokens=50, n=2), request_id=name))
    steps(engine, 2)
    engine.cancel("c", "expired")
    engine.cancel("nobody")
    events = [event for event in steps(engine, 1) if event.request_id == "c"]
    assert [(event.index, event.finish_reason, event.token_ids) for event in events] == [
        (0, "expired", ()),
        (1, "expired", ()),
    ]
    assert [event.usage for event in events] == [None, Usage(1, 0, 0)]


def test_a_dropped_request_is_never_heard_of_again_and_its_id_is_free() -> None:
    engine = make_engine()
    for name in ("a", "b"):
        engine.add_request(make_request(name, GREEDY, request_id=name))
    steps(engine, 3)
    engine.cancel("a")
    engine.drop("a")
    engine.drop("a")
    engine.add_request(make_request("a", SamplingParams(max_tokens=1), request_id="a"))
    events = [event for event in steps(engine, 2) if event.request_id == "a"]
    assert [(event.offset, event.finish_reason) for event in events] == [(0, "length")]


def test_close_forgets_everything() -> None:
    engine = make_engine()
    engine.add_request(make_request("a", GREEDY))
    steps(engine, 2)
    engine.close()
    engine.check_integrity()
    assert not engine.has_work()
    assert engine.statistics().num_free_pages == 256


# Resume, where nothing is left to do


def test_a_request_whose_choices_all_ended_gets_its_last_word_without_a_step_of_the_model() -> None:
    engine = make_engine()
    resume = (ResumedChoice((1, 2), "stop"), ResumedChoice((3,), "length"))
    request = make_request("abc", SamplingParams(max_tokens=5, n=2), resume=resume)
    engine.add_request(request)
    assert engine.has_work()
    (event,) = steps(engine, 1)
    assert (event.index, event.token_ids, event.offset, event.finish_reason) == (1, (), 1, "length")
    assert event.usage == Usage(3, 3, 0)
    assert engine.statistics().num_steps == 0
    assert not engine.has_work()


def test_resumed_tokens_that_complete_a_choice_end_it_at_once() -> None:
    engine = make_engine()
    engine.add_request(
        make_request("abc", SamplingParams(max_tokens=9, stop=("xy",)), resume=(ResumedChoice(tuple(b"axy")),))
    )
    (event,) = steps(engine, 1)
    assert (event.token_ids, event.offset, event.finish_reason) == ((), 3, "stop")


def test_resumed_tokens_that_complete_every_choice_give_one_usage_at_the_end() -> None:
    engine = make_engine()
    resume = (ResumedChoice(tuple(b"axy")), ResumedChoice(tuple(b"abcde")), ResumedChoice(tuple(b"xy"), "stop"))
    engine.add_request(make_request("abc", SamplingParams(max_tokens=5, stop=("xy",), n=3), resume=resume))
    events = steps(engine, 1)
    assert [(event.index, event.finish_reason) for event in events] == [(0, "stop"), (1, "length"), (2, "stop")]
    assert [event.usage for event in events] == [None, None, Usage(3, 10, 0)]
    assert not engine.has_work()


@pytest.mark.parametrize(
    "resume", [(ResumedChoice(), ResumedChoice()), (ResumedChoice((1,) * 6),), (ResumedChoice((999,)),)]
)
def test_a_resume_that_does_not_fit_the_request_is_refused(resume: tuple[ResumedChoice, ...]) -> None:
    engine = make_engine()
    with pytest.raises(InvalidRequestError) as caught:
        engine.add_request(make_request("abc", SamplingParams(max_tokens=5), resume=resume))
    assert caught.value.param == "resume"
    assert not engine.has_work()


# Looking in


def test_capacity_counts_what_runs_and_what_waits() -> None:
    engine = make_engine(max_num_seqs=4, num_pages=8)
    assert engine.capacity() == Capacity(num_rows=4, num_tokens=256)
    engine.add_request(make_request("x" * 32, SamplingParams(max_tokens=64, n=2)))
    assert engine.capacity() == Capacity(num_rows=2, num_tokens=256 - 2 * 96)
    engine.add_request(make_request("x" * 60, SamplingParams(max_tokens=64), request_id="s"))
    assert engine.capacity() == Capacity(0, 0)


def test_statistics_count_tokens_by_kind() -> None:
    engine = make_engine()
    engine.generate("x" * 100, SamplingParams(max_tokens=10))
    statistics = engine.statistics()
    assert (statistics.num_prefill_tokens, statistics.num_decode_tokens, statistics.num_finished) == (100, 9, 1)
    assert statistics.num_steps == 2 + 9  # chunks of 64 and 36, the second of which draws a token


def test_the_echo_engine_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from tokenmill_worker.engine import Engine, EngineConfig\n"
        "Engine(EngineConfig(model='echo')).generate('hello')\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_one_event_per_choice_and_step() -> None:
    engine = make_engine()
    requests = [make_request("abc", SamplingParams(max_tokens=30, n=2), request_id=f"r{i}") for i in range(3)]
    for request in requests:
        engine.add_request(request)
    while engine.has_work():
        told = [(event.request_id, event.index) for event in engine.step()]
        assert len(told) == len(set(told))


def test_requests_are_plain_values() -> None:
    request = make_request("abc", GREEDY)
    assert request == EngineRequest(request_id="r", prompt_token_ids=list(b"abc"), params=GREEDY)


def test_limits_change_between_steps_and_the_answers_do_not() -> None:
    expected = make_engine().generate(["a", "bb", "ccc"], GREEDY)
    engine = make_engine(max_num_seqs=4)
    requests = [make_request(text, GREEDY, request_id=text) for text in ("a", "bb", "ccc")]
    for request in requests:
        engine.add_request(request)
    told = steps(engine, 3)
    engine.reconfigure(max_num_seqs=1, max_num_batched_tokens=2, scheduling_interval=4)
    assert engine.statistics().num_running == 1
    told += steps(engine, 10)
    engine.reconfigure(max_num_seqs=4, max_num_batched_tokens=64, scheduling_interval=1)
    told += steps(engine, 60)
    for request, output in zip(requests, expected, strict=True):
        own = [token for event in told if event.request_id == request.request_id for token in event.token_ids]
        assert own == output.token_ids


def test_an_engine_has_the_rows_it_was_loaded_with_and_no_more() -> None:
    with pytest.raises(EngineError, match="at most 4"):
        make_engine(max_num_seqs=4).reconfigure(max_num_seqs=5, max_num_batched_tokens=64, scheduling_interval=1)
