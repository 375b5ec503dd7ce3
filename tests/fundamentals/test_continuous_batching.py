"""What continuous batching is: rows join and leave at every step, and a step holds nothing but their tokens."""

from tokenmill_worker.engine.api import SamplingParams, TokenEvent
from tokenmill_worker.engine.batch import PackedBatch
from tokenmill_worker.engine.echo import EchoRunner
from tokenmill_worker.engine.engine import Engine

from tests.engine.harness import Spy, make_engine, make_request


def spied_engine(*, max_num_seqs: int = 4, max_num_batched_tokens: int = 64) -> tuple[Engine, list[PackedBatch]]:
    spy = Spy(EchoRunner(num_pages=256, max_model_len=1024))
    engine = make_engine(runner=spy, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens)
    return engine, spy.batches


def row_lengths(batch: PackedBatch) -> list[int]:
    return [int(end - start) for start, end in zip(batch.row_starts[:-1], batch.row_starts[1:], strict=True)]


def told_by(events: list[TokenEvent]) -> list[str]:
    return sorted(event.request_id for event in events)


def add(engine: Engine, request_id: str, *, num_prompt: int, max_tokens: int) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, logit_bias={ord("e"): 100.0})  # one-byte text
    engine.add_request(make_request([ord("p")] * num_prompt, params, request_id=request_id))


def test_a_request_submitted_while_others_decode_joins_at_the_next_step() -> None:
    engine, batches = spied_engine()
    for name in ("a", "b"):
        add(engine, name, num_prompt=5, max_tokens=50)
    for _ in range(3):
        engine.step()
    assert row_lengths(batches[-1]) == [1, 1]
    add(engine, "late", num_prompt=7, max_tokens=50)
    assert told_by(engine.step()) == ["a", "b", "late"]
    assert row_lengths(batches[-1]) == [1, 1, 7]
    assert told_by(engine.step()) == ["a", "b", "late"]
    assert row_lengths(batches[-1]) == [1, 1, 1]


def test_the_place_of_a_finished_row_is_taken_at_the_next_step() -> None:
    engine, batches = spied_engine(max_num_seqs=2)
    add(engine, "short", num_prompt=5, max_tokens=3)
    add(engine, "long", num_prompt=5, max_tokens=50)
    add(engine, "next", num_prompt=6, max_tokens=50)
    events = [engine.step() for _ in range(4)]
    assert [told_by(step) for step in events] == [["long", "short"]] * 3 + [["long", "next"]]
    assert [event.request_id for event in events[2] if event.finish_reason == "length"] == ["short"]
    assert [row_lengths(batch) for batch in batches] == [[5, 5], [1, 1], [1, 1], [1, 6]]


def test_a_long_prompt_does_not_stop_those_who_decode() -> None:
    engine, batches = spied_engine(max_num_batched_tokens=16)
    add(engine, "a", num_prompt=5, max_tokens=50)
    engine.step()
    add(engine, "long", num_prompt=40, max_tokens=50)
    events = [engine.step() for _ in range(3)]
    assert [row_lengths(batch) for batch in batches[1:]] == [[1, 15], [1, 15], [1, 10]]
    assert [told_by(step) for step in events] == [["a"], ["a"], ["a", "long"]]


def test_packed_rows_hold_exactly_the_scheduled_tokens_and_no_padding() -> None:
    engine, batches = spied_engine(max_num_seqs=5, max_num_batched_tokens=24)
    lengths = {f"r{index}": (1 + 13 * index % 50, 2 + 7 * index % 20) for index in range(12)}
    for request_id, (num_prompt, max_tokens) in lengths.items():
        add(engine, request_id, num_prompt=num_prompt, max_tokens=max_tokens)
    while engine.has_work():
        engine.step()
    for batch in batches:
        assert batch.num_tokens == sum(row_lengths(batch)) <= 24
        assert batch.num_rows == len(row_lengths(batch)) <= 5
        assert min(row_lengths(batch)) >= 1
        assert len(batch.positions) == len(batch.slots) == len(set(batch.slots.tolist())) == batch.num_tokens
    # Every prompt token and every drawn token but the last is computed once (cached prefixes: not at all).
    known = sum(num_prompt + max_tokens - 1 for num_prompt, max_tokens in lengths.values())
    assert sum(batch.num_tokens for batch in batches) == known - engine.statistics().num_cached_tokens
