"""A worker and a real server, end to end: from a lane entry to the final word."""

from tokenmill.wire.keys import Lane

from tests.queue.harness import Bench, body, running_worker, uninterrupted_text
from tests.support.servers import keys_without_ttl
from tests.support.waiting import wait_until


def test_a_submitted_request_is_streamed_and_finished(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10"):
        assert bench.submit("q-1", prompt="Why is the sky blue?", max_tokens=40) == "accepted"
        result = bench.wait_result("q-1")
    assert result.terminal is not None
    assert (result.terminal.type, result.terminal.finish_reason) == ("done", "length")
    assert (
        result.text
        == result.terminal.text
        == uninterrupted_text("Why is the sky blue?", temperature=0.0, max_tokens=40)
    )
    assert len(result.deltas) > 1
    assert result.terminal.usage.model_dump() == {"prompt_tokens": 20, "completion_tokens": 40, "cached_tokens": 0}


def test_deltas_are_contiguous_and_their_stream_ids_are_token_offsets(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10"):
        bench.submit("q-1", max_tokens=50, n=3)
        result = bench.wait_result("q-1")
    end = 0
    for delta, entry_id in zip(result.deltas, result.ids, strict=False):
        assert delta.offset == end
        end = delta.end
        assert entry_id == f"{end}-0"
    assert end == 150
    assert result.ids[-1] == "150-1"


def test_timings_tell_waiting_first_token_and_total(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=5"):
        bench.submit("q-1", max_tokens=5)
        timings = bench.terminal("q-1").timings
    assert timings.queued is not None
    assert timings.first_token is not None
    assert timings.total is not None
    assert 0 <= timings.queued <= timings.first_token <= timings.total


def test_a_bare_xadd_is_answered_under_its_lane_and_entry_id(bench: Bench) -> None:
    with running_worker(bench):
        request_id = bench.add_raw({"prompt": "Say hello"})
        assert bench.terminal(request_id).type == "done"


def test_a_bare_xadd_with_id_and_body_is_answered_under_its_id(bench: Bench) -> None:
    with running_worker(bench):
        messages = [{"role": "user", "content": "Say hello"}]
        bench.add_raw({"id": "chat-1", "body": body(messages=messages, max_tokens=4, temperature=0)}, lane=Lane.HIGH)
        terminal = bench.terminal("chat-1")
    assert terminal.usage.completion_tokens == 4


def test_requests_that_were_queued_before_the_first_worker_are_served(bench: Bench) -> None:
    raw_id = bench.add_raw({"prompt": "early", "id": "raw-1"})
    bench.submit("q-1")
    with running_worker(bench):
        assert bench.terminal("q-1").type == bench.terminal("raw-1").type == "done"
    assert raw_id.startswith("2-")


def test_many_requests_run_together_and_each_gets_its_own_answer(bench: Bench) -> None:
    prompts = {f"q-{number}": f"prompt number {number}" for number in range(40)}
    with running_worker(bench) as running:
        for request_id, prompt in prompts.items():
            bench.submit(request_id, prompt=prompt, max_tokens=30)
        texts = {request_id: bench.terminal(request_id).text for request_id in prompts}
        statistics = running.engine.statistics()
    assert texts == {key: uninterrupted_text(prompt, temperature=0.0, max_tokens=30) for key, prompt in prompts.items()}
    assert statistics.num_steps < 40 * 30 / 2


def test_what_nobody_watches_comes_as_one_delta_and_the_final_word(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10"):
        bench.submit("q-1", max_tokens=40, stream="final")
        result = bench.wait_result("q-1")
    assert len(result.deltas) == 1
    assert result.terminal is not None
    assert result.terminal.text == result.text


def test_choices_come_interleaved_and_the_final_word_has_all_of_them(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=5"):
        bench.submit("q-1", max_tokens=20, n=3, temperature=1.0, seed=7)
        result = bench.wait_result("q-1")
    assert result.terminal is not None
    streamed = {i: "".join(delta.text for delta in result.deltas if delta.index == i) for i in range(3)}
    assert [choice.text for choice in result.terminal.choices or ()] == list(streamed.values())
    assert len(set(streamed.values())) == 3


def test_logprobs_come_with_their_tokens(bench: Bench) -> None:
    with running_worker(bench):
        bench.submit("q-1", max_tokens=5, logprobs=2)
        result = bench.wait_result("q-1")
    logprobs = [one for delta in result.deltas for one in delta.logprobs or ()]
    assert len(logprobs) == 5
    assert all(len(one.top) == 2 and one.logprob <= 0 for one in logprobs)


def test_stop_strings_are_neither_streamed_nor_told(bench: Bench) -> None:
    whole = uninterrupted_text("hello", temperature=0.0, max_tokens=40)
    with running_worker(bench, model="echo?step_ms=5"):
        bench.submit("q-1", max_tokens=40, stop=[whole[10:13]])
        result = bench.wait_result("q-1")
    assert result.terminal is not None
    assert result.terminal.finish_reason == "stop"
    assert result.text == result.terminal.text == whole[: whole.index(whole[10:13])]


def test_higher_lanes_are_served_first(bench: Bench) -> None:
    for number in range(3):
        bench.submit(f"bulk-{number}", lane=Lane.BULK, priority="bulk")
    for number in range(3):
        bench.submit(f"high-{number}", lane=Lane.HIGH, priority="high")
    with running_worker(bench, max_num_seqs=1, max_num_batched_tokens=1):
        names = [f"{kind}-{number}" for kind in ("high", "bulk") for number in range(3)]
        for name in names:
            bench.wait_result(name)
    finished = {name: int(bench.job(name)["finished_ms"]) for name in names}
    assert max(finished[f"high-{n}"] for n in range(3)) <= min(finished[f"bulk-{n}"] for n in range(3))


def test_a_burst_ends_when_the_queue_is_empty(bench: Bench) -> None:
    for number in range(20):
        bench.submit(f"q-{number}")
    with running_worker(bench, burst=True) as running:
        running.wait_end()
        assert all(bench.terminal(f"q-{number}").type == "done" for number in range(20))


def test_after_the_last_worker_left_the_queue_is_at_rest_and_every_result_key_expires(bench: Bench) -> None:
    with running_worker(bench):
        for number in range(5):
            bench.submit(f"q-{number}")
        bench.add_raw({"body": b"nonsense"})
        for number in range(5):
            bench.wait_result(f"q-{number}")
        wait_until(bench.dead_letters, description="the dead letter")
    assert bench.is_at_rest()
    lanes = {bench.keys.lane(lane) for lane in Lane}
    assert keys_without_ttl(bench.server, bench.keys.queue) <= lanes | {bench.keys.dead, bench.keys.count}


def test_a_worker_tells_what_it_serves_and_what_it_does(bench: Bench) -> None:
    with running_worker(bench) as running:
        bench.submit("q-1")
        bench.wait_result("q-1")
        key = bench.keys.worker_info(running.worker.lease.worker)
        wait_until(lambda: bench.server.hget(key, "num_ended") == b"1", description="the statistics")
        info = bench.server.hgetall(key)
    assert info[b"model"] == b"echo"
    assert int(info[b"num_decode_tokens"]) > 0
