"""The echo model: its text, its sampler, and that it reads its memory through the page table."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from tokenmill_worker.engine.api import EngineConfig, SamplingParams
from tokenmill_worker.engine.batch import PAGE_SIZE, Ints, PackedBatch, SampleRow
from tokenmill_worker.engine.echo import EchoRunner, EchoTokenizer, sample
from tokenmill_worker.engine.echo_row import draw as draw_one
from tokenmill_worker.engine.engine import Engine

from tests.engine.harness import make_engine

LOGITS = np.array([2.0, 0.5, 1.0, -1.0, 1.5, 0.0])
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum()


def ints(*values: int) -> Ints:
    return np.array(values, dtype=np.int32)


def draw(
    count: int = 1,
    *,
    prompt: tuple[int, ...] = (0,),
    output: tuple[int, ...] = (),
    banned: tuple[int, ...] = (),
    **params: Any,
) -> list[int]:
    """`count` draws from LOGITS under the same params, each with a seed of its own."""
    own = SamplingParams(**params)
    rows = [SampleRow(0, own, seed, len(output), ints(*prompt), ints(*output), banned) for seed in range(count)]
    return [drawn.token_id for drawn in sample(np.tile(LOGITS, (count, 1)), rows)]


def one_row(token_ids: list[int], page_ids: list[int], *, done: int = 0, **more: Any) -> PackedBatch:
    """The tokens from `done` on, as one row."""
    positions = np.arange(done, len(token_ids), dtype=np.int32)
    pages = np.array(page_ids, dtype=np.int32)
    return PackedBatch(
        token_ids=np.array(token_ids[done:], dtype=np.int32),
        positions=positions,
        slots=pages[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE,
        row_starts=ints(0, len(positions)),
        context_lens=ints(len(token_ids)),
        page_ids=pages,
        page_starts=ints(0, len(pages)),
        samples=[SampleRow(0, SamplingParams(temperature=0.0), 0, 0, ints(*token_ids), ints())],
        **more,
    )


# Text


def test_the_text_is_valid_utf8_with_characters_of_every_length() -> None:
    text = make_engine().generate("hello", SamplingParams(max_tokens=1000))[0].text
    assert "\N{REPLACEMENT CHARACTER}" not in text[:-1]
    assert {len(character.encode()) for character in text[:-1]} == {1, 2, 3, 4}


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = EchoTokenizer()
    assert tokenizer.decode(tokenizer.encode("naïve 猫 \N{CAT FACE}")) == "naïve 猫 \N{CAT FACE}"
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.decode(tokenizer.apply_chat_template(messages)) == "<user>: hi\n<assistant>: "


def test_every_token_of_the_prefix_matters() -> None:
    engine = make_engine()
    prompts = ["a" * 50, "b" + "a" * 49, "a" * 49 + "b", "a" * 25 + "b" + "a" * 24, "a" * 51]
    texts = [output.text for output in engine.generate(prompts, SamplingParams(temperature=0.0))]
    assert len(set(texts)) == len(prompts)


# Memory


def test_memory_is_read_through_the_page_table() -> None:
    token_ids = list(range(60, 130))
    runner = EchoRunner(num_pages=8)
    runner.run(one_row(token_ids[:-1], [5, 1, 3]))
    right = runner.run(one_row(token_ids, [5, 1, 3], done=69))
    assert right == EchoRunner(num_pages=8).run(one_row(token_ids, [0, 1, 2]))
    assert right != runner.run(one_row(token_ids, [5, 1, 4], done=69))


def test_every_page_is_read_in_time_not_only_the_last() -> None:
    """Two contexts that differ in a page in the middle of the table part within some tokens."""
    runner = EchoRunner(num_pages=8)
    token_ids = list(range(60, 160))
    runner.run(one_row(token_ids, [0, 1, 2, 3]))
    runner.run(one_row([99] * 100, [4, 5, 6, 7]))
    pages = {"right": [0, 1, 2, 3], "wrong": [0, 5, 2, 3]}
    drawn = {
        name: [runner.run(one_row(token_ids[:length], table, done=length - 1)) for length in range(65, 100)]
        for name, table in pages.items()
    }
    assert drawn["right"] != drawn["wrong"]


def test_a_page_is_copied_before_anything_is_written() -> None:
    runner = EchoRunner(num_pages=4)
    token_ids = list(range(60, 70))
    whole = runner.run(one_row(token_ids, [0]))
    copied = runner.run(one_row(token_ids, [2], done=9, page_copies=[(0, 2)]))
    assert copied == whole


class _Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_steps_are_paced_as_on_a_device_beside_which_the_host_works(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr("tokenmill_worker.engine.echo.time", clock)
    runner = EchoRunner(num_pages=4, step_s=0.02)
    ends = []
    for host_s in (0.0, 0.005, 0.005, 1.0):
        clock.sleep(host_s)
        runner.run(one_row([65], [0]))
        ends.append(clock.now_s)
    assert ends == pytest.approx([100.02, 100.04, 100.06, 101.08])


# Faults on request


def test_a_prompt_with_the_text_of_fail_on_fails_and_its_neighbours_do_not() -> None:
    engine = Engine(EngineConfig(model="echo?fail_on=bad+word"))
    outputs = engine.generate(["a good word", "such a bad word"], SamplingParams(max_tokens=3))
    assert [output.finish_reason for output in outputs] == ["length", "error"]
    assert outputs[1].error is not None
    assert outputs[1].error.code == "engine_error"


def test_a_prompt_with_the_text_of_abort_on_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Aborted(BaseException):
        """In place of the end."""

    def abort() -> None:
        raise Aborted

    monkeypatch.setattr("tokenmill_worker.engine.echo.os.abort", abort)
    engine = Engine(EngineConfig(model="echo?abort_on=poison"))
    engine.generate("harmless", SamplingParams(max_tokens=3))
    with pytest.raises(Aborted):
        engine.generate("a poisonous prompt", SamplingParams(max_tokens=3))


# Sampling


def test_greedy_takes_the_likeliest_and_of_equals_the_lower_id() -> None:
    assert draw(temperature=0.0) == [0]
    assert draw(temperature=0.0, logit_bias={2: 1.0}) == [0]
    assert draw(temperature=0.0, logit_bias={2: 1.1}) == [2]


def chi_square(counts: Counter[int], probabilities: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    total = sum(counts.values())
    assert all(probabilities[token] > 0 for token in counts)
    return sum((counts[token] - total * p) ** 2 / (total * p) for token, p in enumerate(probabilities) if p > 0)


@pytest.mark.parametrize(
    ("params", "kept", "temperature"),
    [
        ({}, [0, 1, 2, 3, 4, 5], 1.0),
        ({"temperature": 0.5}, [0, 1, 2, 3, 4, 5], 0.5),
        ({"top_k": 3}, [0, 4, 2], 1.0),
        ({"top_p": 0.7}, [0, 4, 2], 1.0),
        ({"top_p": 0.01}, [0], 1.0),
        ({"min_p": 0.3}, [0, 4, 2], 1.0),
        ({"top_k": 2, "min_p": 0.9}, [0], 1.0),
        ({"top_k": 2, "top_p": 0.6}, [0], 1.0),  # a share of what top_k kept: the first has 0.62 of it
    ],
)
def test_draws_follow_the_filtered_distribution(params: dict[str, Any], kept: list[int], temperature: float) -> None:
    expected = np.zeros(len(LOGITS))
    expected[kept] = np.exp(LOGITS[kept] / temperature)
    counts = Counter(draw(50_000, **params))
    assert chi_square(counts, expected / expected.sum()) < 20.6  # 99.9 % quantile at 5 degrees of freedom


def test_penalties_lower_what_was_said() -> None:
    assert draw(temperature=0.0, output=(0,), presence_penalty=0.6) == [4]
    assert draw(temperature=0.0, output=(0, 0, 0, 4), frequency_penalty=0.3) == [4]
    assert draw(temperature=0.0, prompt=(0,), repetition_penalty=1.5) == [4]
    assert draw(temperature=0.0, prompt=(0,), presence_penalty=2.0) == [0]  # of the prompt's tokens: no


def test_banned_tokens_are_never_drawn() -> None:
    assert 0 not in draw(1000, banned=(0,))
    assert draw(temperature=0.0, banned=(0, 4)) == [2]


def test_logprobs_are_of_the_raw_distribution() -> None:
    row = SampleRow(0, SamplingParams(temperature=0.0, logprobs=2, logit_bias={3: 50.0}), 0, 0, ints(0), ints())
    (drawn,) = sample(LOGITS[None], [row])
    assert drawn.token_id == 3
    assert drawn.logprobs is not None
    assert math.isclose(drawn.logprobs.chosen, math.log(PROBABILITIES[3]))
    assert [token for token, _ in drawn.logprobs.top] == [0, 4]
    assert math.isclose(drawn.logprobs.top[0][1], math.log(PROBABILITIES[0]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_is_not_finite_draws_nothing_and_its_neighbour_does(value: float) -> None:
    logits = np.stack([LOGITS, LOGITS])
    logits[0, 3] = value
    rows = [SampleRow(index, SamplingParams(temperature=0.0), 0, 0, ints(0), ints()) for index in range(2)]
    bad, good = sample(logits, rows)
    assert bad.error is not None
    assert bad.error.code == "non_finite_logits"
    assert (good.token_id, good.error) == (0, None)


# One way of drawing beside the other


SIMPLE: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 0.01}, {"temperature": 0.5}, {}]
MIXED = [*SIMPLE, {"temperature": 20.0}, {"top_p": 0.8}, {"presence_penalty": 1.0}]


def _outputs(settings: list[dict[str, Any]]) -> list[tuple[list[int], str]]:
    params = [SamplingParams(max_tokens=120, seed=seed, **own) for seed, own in enumerate(settings)]
    outputs = make_engine().generate(["naïve 猫 \N{CAT FACE}"] * len(params), params)
    return [(output.token_ids, output.text) for output in outputs]


def test_a_row_by_itself_draws_what_the_arrays_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    singly = _outputs(MIXED)
    monkeypatch.setattr("tokenmill_worker.engine.echo._FEW", 0)
    assert singly == _outputs(MIXED)


def test_the_likely_bytes_alone_draw_what_all_of_them_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenmill_worker.engine.echo._FEW", 0)
    by_likely = _outputs(SIMPLE * 4)
    monkeypatch.setattr("tokenmill_worker.engine.echo._is_simple", lambda samples: False)
    assert by_likely == _outputs(SIMPLE * 4)


def test_a_draw_that_rounding_could_decide_is_left_to_the_arrays() -> None:
    logits = {65: 4.0, 66: 4.0}
    assert draw_one(logits, 1.0, 0.5) is None
    assert draw_one(logits, 1.0, 0.5 - 1e-9) == 65
    assert draw_one(logits, 1.0, 0.5 + 1e-9) == 66
    assert draw_one(logits, 100.0, 0.9) is None
