"""What an engine keeps when requests come and go: nothing. And what 10,000 who wait cost those who run: nothing."""

import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import tokenmill_worker.engine
from tokenmill_worker.engine.api import EngineRequest, SamplingParams
from tokenmill_worker.engine.engine import Engine

from tests.engine.harness import make_engine, make_request

if TYPE_CHECKING:
    from _typeshed import TraceFunction

NUM_REQUESTS = 300
SLACK_BYTES = 6144  # a dictionary may be resized, numpy keeps freed buffers; less than 21 bytes a request
ENGINE_FILES = str(Path(tokenmill_worker.engine.__file__).parent / "*")
KINDS = (
    SamplingParams(max_tokens=9),
    SamplingParams(temperature=0.0, max_tokens=12),
    SamplingParams(max_tokens=8, stop=("e",), logprobs=1),
    SamplingParams(max_tokens=5, n=3),
    SamplingParams(max_tokens=8, min_tokens=4, repetition_penalty=1.2, stop_token_ids=(101,)),
)


def requests(start: int) -> Iterator[EngineRequest]:
    for index in range(start, start + NUM_REQUESTS):
        prompt = f"request {index:05} " * (1 + index % 9)
        yield make_request(prompt, KINDS[index % len(KINDS)], request_id=f"r{index:05}")


def serve(engine: Engine, start: int) -> None:
    """Some of them are cancelled, and some dropped, on their way."""
    for index, request in enumerate(requests(start)):
        engine.add_request(request)
        engine.step()
        if index % 7 == 0:
            engine.cancel(request.request_id)
        if index % 11 == 0:
            engine.drop(request.request_id)
    while engine.has_work():
        engine.step()


def objects() -> Counter[type]:
    """How many there are of each of the engine's own classes."""
    gc.collect()
    kinds = Counter(map(type, gc.get_objects()))
    return Counter(
        {kind: num for kind, num in kinds.items() if str(kind.__module__).startswith("tokenmill_worker.engine")}
    )


def allocated_bytes() -> int:
    """By the engine's own lines."""
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, ENGINE_FILES)])
    return sum(trace.size for trace in snapshot.traces)


def test_three_hundred_more_requests_leave_no_object_and_no_memory_behind() -> None:
    engine = make_engine(num_pages=48, max_num_seqs=6)  # a pool that the first requests' prefixes fill
    serve(engine, 0)
    tracemalloc.start()
    try:
        serve(engine, NUM_REQUESTS)
        objects_before, bytes_before = objects(), allocated_bytes()
        serve(engine, 2 * NUM_REQUESTS)
        assert objects() == objects_before
        assert allocated_bytes() - bytes_before <= SLACK_BYTES
    finally:
        tracemalloc.stop()
    assert not engine.has_work()


def num_calls(work: Callable[[], object]) -> int:
    """Python functions called, and lines run in them: what a loop over those who wait could not hide from."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> "TraceFunction":
        nonlocal count
        del frame, event, argument
        count += 1
        return trace

    before = sys.gettrace()
    gc.collect()
    gc.disable()  # what others do when garbage is collected is not the engine's
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def test_who_waits_costs_a_step_nothing() -> None:
    costs = []
    for num_waiting in (8, 10_000):
        engine = make_engine(max_num_seqs=4, max_num_batched_tokens=64)
        for index in range(4 + num_waiting):
            params = SamplingParams(temperature=0.0, max_tokens=200, n=1 + index % 2)
            engine.add_request(make_request("abc", params, request_id=f"{index}"))
        for _ in range(3):
            engine.step()
        costs.append([num_calls(look) for look in (engine.step, engine.capacity, engine.statistics)])
    assert costs[0] == costs[1]
