"""The blocking client against a real server, with a worker's hands on the other side."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import redis
from tokenmill import (
    Client,
    ConflictError,
    InvalidRequestError,
    Job,
    JobLostError,
    RequestFailedError,
    ResultTimeoutError,
    UnavailableError,
    UnknownRequestError,
)
from tokenmill.submitting import URL_VARIABLE
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.messages import ChoiceText, Request, TerminalEntry
from tokenmill.wire.store import Store

from tests.support.hands import Hands, add_raw, delta, done, failed, submission
from tests.support.servers import running_server
from tests.support.waiting import wait_until


@contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """The worker's side of a test, in a thread; what it raises, the test raises."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(action)
        yield
        future.result(timeout=20)


def answer(hands: Hands, *texts: str) -> None:
    """The next request gets these deltas, one token each, and its completion."""
    job = hands.wait_for_work()
    for offset, text in enumerate(texts):
        hands.publish(job, delta(offset, text, 100 + offset))
    hands.finish(job, done("".join(texts), len(texts)), num_tokens=len(texts))


def answered(hands: Hands, client: Client, *texts: str) -> Job:
    job = client.submit("hello")
    answer(hands, *texts)
    return job


# --- submit ---


def test_submit_carries_every_argument_to_the_worker(client: Client, hands: Hands) -> None:
    chat = [{"role": "user", "content": "Grüße"}]
    job = client.submit(messages=chat, id="q-1", max_tokens=3, temperature=0.0, seed=2**63, stop="x", priority="high")
    begun = hands.begin_next(Lane.HIGH)
    assert begun.request_id == job.id == "q-1"
    assert Request.decode(begun.body) == Request.build(
        messages=chat, max_tokens=3, temperature=0.0, seed=2**63, stop=["x"], priority="high"
    )


def test_the_same_id_with_the_same_request_is_the_same_job(client: Client) -> None:
    client.submit("hello", id="q-1")
    client.submit("hello", id="q-1")
    assert client.statistics().depth == 1


def test_the_same_id_with_another_request_is_a_conflict(client: Client, hands: Hands) -> None:
    client.submit("hello", id="q-1")
    with pytest.raises(ConflictError, match="q-1"):
        client.submit("other", id="q-1")
    assert Request.decode(hands.begin_next().body).prompt == "hello"


def test_a_bad_request_is_refused_before_anything_is_sent(client: Client) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.submit_many([{"prompt": "good"}, {"prompt": "bad", "max_tokens": 0}])
    assert caught.value.param == "max_tokens"
    assert client.statistics().depth == 0


def test_a_bad_id_is_refused(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="id must be"):
        client.submit("hello", id="a b")
    with pytest.raises(InvalidRequestError, match="id must be"):
        client.job("a b")


def test_hundreds_of_requests_go_in_one_call_and_keep_their_order(client: Client) -> None:
    jobs = client.submit_many([{"prompt": f"row {i}", "id": f"row-{i}", "priority": "bulk"} for i in range(1_234)])
    assert [job.id for job in jobs] == [f"row-{i}" for i in range(1_234)]
    assert client.statistics().lanes["3"].backlog == 1_234
    assert client.submit_many([]) == []


def test_ids_that_nobody_gave_are_all_different(client: Client) -> None:
    assert len({job.id for job in client.submit_many([{"prompt": "same"}] * 50)}) == 50


def test_a_delayed_request_is_scheduled_and_runs_when_its_time_has_come(client: Client, hands: Hands) -> None:
    job = client.submit("later", delay_s=0.02)
    assert job.status() == "scheduled"
    assert client.statistics().scheduled == 1
    wait_until(lambda: hands.store.run(hands.transitions.sweep()), description="its time has come")
    answer(hands, "a")
    assert job.result(timeout=20).text == "a"


def test_each_of_many_may_have_a_delay_of_its_own(client: Client) -> None:
    requests = [{"prompt": "a", "delay_s": delay_s} for delay_s in (None, 0, 3600.5)]
    assert [job.status() for job in client.submit_many(requests)] == ["queued", "queued", "scheduled"]


def test_a_delayed_request_can_be_cancelled_before_its_time(client: Client) -> None:
    job = client.submit("later", delay_s=3600)
    assert job.cancel() == "cancelled"
    assert job.result(timeout=20).finish_reason == "cancelled"
    assert client.statistics().scheduled == 0


@pytest.mark.parametrize("delay_s", [-1, float("nan"), True, "5", 1e12])
def test_a_delay_that_is_none_is_refused(client: Client, delay_s: object) -> None:
    with pytest.raises(InvalidRequestError, match="delay_s"):
        client.submit_many([{"prompt": "a", "delay_s": delay_s}])


def test_a_durable_request_says_what_was_reached(client: Client, server: redis.Redis) -> None:
    has_file = server.config_get("appendonly")["appendonly"] == "yes"
    knows_files = [int(part) for part in server.info("server")["redis_version"].split(".")] >= [7, 2]
    first, again = (client.submit("pay the bill", id="q-1", durable=True) for _ in range(2))
    assert first.durability == again.durability == ("aof" if has_file and knows_files else "memory")
    assert client.submit("nothing asked").durability is None


def test_a_server_without_an_append_only_file_and_replicas_has_it_in_memory(
    monkeypatch: pytest.MonkeyPatch, queue: str
) -> None:
    monkeypatch.setattr("tokenmill.wire.store.procedures.DURABLE_TIMEOUT_MS", 20)
    with running_server() as server, redis.Redis.from_url(server.tcp_url) as bare, Client(server.tcp_url) as client:
        bare.config_set("appendonly", "no")
        jobs = client.submit_many([{"prompt": "a"}, {"prompt": "b"}], durable=True)
        assert [job.durability for job in jobs] == ["memory", "memory"]


# --- stream ---


def test_deltas_come_while_the_request_runs(client: Client, hands: Hands) -> None:
    job = client.submit("hello")
    begun = hands.begin_next()
    deltas = job.stream(timeout=20)
    for offset, text in enumerate(("Be", "cause ", "é")):
        hands.publish(begun, delta(offset, text, offset))
        assert next(deltas).text == text
    hands.finish(begun, done("Because é", 3))
    assert list(deltas) == []


def test_late_and_repeated_readers_get_the_same_deltas(client: Client, hands: Hands) -> None:
    job = answered(hands, client, "a", "b", "c")
    first = list(job.stream(timeout=20))
    assert [(news.text, news.offset, news.token_ids) for news in first] == [
        ("a", 0, (100,)),
        ("b", 1, (101,)),
        ("c", 2, (102,)),
    ]
    assert list(client.job(job.id).stream(timeout=20)) == first


def test_a_stream_resumes_after_any_delta(client: Client, hands: Hands) -> None:
    job = answered(hands, client, "a", "b", "c")
    first = list(job.stream(timeout=20))
    assert list(job.stream(after=first[0].entry_id)) == first[1:]
    assert list(job.stream(after=first[-1].entry_id)) == []
    assert list(job.stream(after="3-1")) == []


def test_a_stream_goes_on_through_a_killed_connection(client: Client, hands: Hands, server: redis.Redis) -> None:
    job = client.submit("hello")
    begun = hands.begin_next()
    deltas = job.stream(timeout=20)
    hands.publish(begun, delta(0, "a", 1))
    assert next(deltas).text == "a"
    texts: list[str] = []
    with meanwhile(lambda: texts.extend(news.text for news in deltas)):
        wait_until(lambda: server.info("clients")["blocked_clients"], description="the reader blocks")
        server.client_kill_filter(_type="normal", skipme=True)
        hands.publish(begun, delta(1, "b", 2))
        hands.finish(begun, done("ab", 2))
    assert texts == ["b"]


def test_a_restart_is_told_and_what_came_before_is_not_in_the_result(
    client: Client, hands: Hands, store: Store, keys: Keys
) -> None:
    job = client.submit("hello")
    begun = hands.begin_next(fingerprint="one")
    hands.publish(begun, delta(0, "old", 1, 2))
    hands.release(begun)
    again = hands.begin_next(Lane.RESUME, fingerprint="two")
    hands.finish(again, done("new", 1), delta(0, "new", 3))
    assert [(news.text, news.offset, news.is_restart) for news in job.stream(timeout=20)] == [
        ("old", 0, False),
        ("new", 0, True),
    ]
    assert job.result(timeout=20).token_ids == [3]


def test_an_after_that_is_no_entry_id_is_refused(client: Client) -> None:
    for after in ("$", "17", "", "-1-0", f"{1 << 64}-0"):
        with pytest.raises(InvalidRequestError):
            list(client.job("q-1").stream(after=after))


# --- result ---


def test_a_result_has_text_tokens_reason_and_usage(client: Client, hands: Hands) -> None:
    completion = answered(hands, client, "a", "b").result(timeout=20)
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("ab", [100, 101], "length")
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (1, 2)


def test_a_result_has_all_choices(client: Client, hands: Hands) -> None:
    job = client.submit("hello", n=2)
    begun = hands.begin_next()
    hands.publish(begun, delta(0, "x", 1), delta(1, "y", 2, index=1), delta(2, "z", 3))
    choices = (
        ChoiceText(index=0, text="xz", finish_reason="stop"),
        ChoiceText(index=1, text="y", finish_reason="length"),
    )
    hands.finish(begun, TerminalEntry(type="done", finish_reason="stop", text="xz", choices=choices))
    completion = job.result(timeout=20)
    assert [(choice.text, choice.token_ids, choice.finish_reason) for choice in completion.choices] == [
        ("xz", (1, 3), "stop"),
        ("y", (2,), "length"),
    ]


def test_a_terminal_error_is_raised_by_result_and_by_stream(client: Client, hands: Hands) -> None:
    job = client.submit("hello")
    begun = hands.begin_next()
    hands.finish(begun, failed("too_long", "the prompt has 9 tokens"), delta(0, "par", 1), state="failed")
    for read in (lambda: job.result(timeout=20), lambda: list(job.stream(timeout=20))):
        with pytest.raises(RequestFailedError, match="the prompt has 9 tokens") as caught:
            read()
        assert caught.value.code == "too_long"
        assert caught.value.completion.token_ids == [1]
    assert job.status() == "failed"


def test_a_cancelled_request_has_a_completion_that_says_so(client: Client) -> None:
    job = client.submit("hello")
    assert job.cancel() == "cancelled"
    assert job.cancel() == "final"
    assert job.result(timeout=20).finish_reason == "cancelled"
    assert job.status() == "cancelled"


def test_an_expired_request_has_a_completion_that_says_so(client: Client, hands: Hands) -> None:
    job = client.submit("hello", deadline_s=0.001)
    wait_until(lambda: hands.store.run(hands.transitions.sweep()), description="the sweep settled it")
    assert job.result(timeout=20).finish_reason == "expired"


def test_a_result_that_is_not_final_in_time_is_a_timeout(client: Client) -> None:
    job = client.submit("hello")
    for timeout in (0, 0.05):
        with pytest.raises(ResultTimeoutError):
            job.result(timeout=timeout)
    with pytest.raises(TimeoutError):
        list(job.stream(timeout=0.05))


def test_an_id_that_nobody_knows_is_an_error_and_not_a_hang(client: Client) -> None:
    job = client.job("nobody")
    for read in (job.result, job.status):
        with pytest.raises(UnknownRequestError, match="nobody"):
            read()
    assert job.cancel() == "unknown"


def test_a_request_that_the_server_lost_is_an_error_and_not_a_hang(
    client: Client, server: redis.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenmill.follow.BLOCK_S", 0.1)
    job = client.submit("hello")
    server.delete(keys.job(job.id))
    with pytest.raises(JobLostError):
        job.result()


def test_a_final_request_whose_stream_is_gone_is_an_error(
    client: Client, hands: Hands, server: redis.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenmill.follow.BLOCK_S", 0.1)
    job = answered(hands, client, "a")
    server.delete(keys.result(job.id))
    with pytest.raises(JobLostError):
        job.result()


def test_a_raw_entry_is_waited_for_before_a_worker_took_it(
    client: Client, hands: Hands, store: Store, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenmill.follow.FIRST_BLOCK_S", 0.02)
    by_default_id = client.job(f"2-{add_raw(store, keys, prompt='one')}")
    for job in (by_default_id, client.job("mine")):
        with pytest.raises(ResultTimeoutError):
            job.result(timeout=0.2)
    answer(hands, "a")
    assert by_default_id.result(timeout=20).text == "a"


def test_status_follows_the_request(client: Client, hands: Hands) -> None:
    job = client.submit("hello")
    seen = [job.status()]
    begun = hands.begin_next()
    seen.append(job.status())
    hands.finish(begun, done(""))
    assert [*seen, job.status()] == ["queued", "running", "done"]


def test_cancelling_a_running_request_tells_its_worker(client: Client, hands: Hands) -> None:
    job = client.submit("hello")
    hands.begin_next()
    assert job.cancel() == "flagged"
    assert hands.renew().cancelled == (job.id,)


# --- threads, addresses, absence ---


def test_threads_may_share_a_client(client: Client, hands: Hands) -> None:
    def ask(number: int) -> str:
        return client.submit(f"question {number}", id=f"q-{number}").result(timeout=20).text

    def serve() -> None:
        served = 0
        while served < 8:
            hands.store.send([("XREAD", "BLOCK", 4_000, "STREAMS", hands.keys.lane(Lane.NORMAL), "0-0")])
            for begun in hands.begin(*(delivery.claim() for delivery in hands.fetch())):
                hands.finish(begun, done(begun.request_id))
                served += 1

    with meanwhile(serve), ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [f"q-{number}" for number in range(8)]


def test_a_unix_socket_and_a_port_reach_the_same_queue() -> None:
    with running_server() as server, Client(server.socket_url) as by_socket, Client(server.tcp_url) as by_port:
        by_socket.submit("hello", id="q-1")
        assert by_port.job("q-1").status() == "queued"


def test_no_server_at_the_url_is_said_soon_and_without_the_password() -> None:
    started = time.monotonic()
    with Client("redis://me:sesame@127.0.0.1:1/0") as client:
        for attempt in (lambda: client.submit("hello"), client.job("q-1").result, client.statistics):
            with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1") as caught:
                attempt()
            assert "sesame" not in str(caught.value)
    assert time.monotonic() - started < 10


def test_no_server_at_a_socket_is_said_with_its_path() -> None:
    with Client("unix:///nowhere.sock") as client, pytest.raises(UnavailableError, match=r"/nowhere\.sock"):
        client.submit("hello")


def test_a_password_that_the_server_refuses_is_said() -> None:
    with running_server() as server:
        url = server.tcp_url.replace("redis://", "redis://nobody:sesame@")
        with Client(url) as client, pytest.raises(UnavailableError, match="password") as caught:
            client.submit("hello")
        assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "redis//x"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="redis://"):
        Client(url)


def test_a_queue_name_that_could_break_the_keys_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="queue"):
        Client(queue="a}b")


def test_the_url_comes_from_the_environment_when_none_is_given(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, queue: str
) -> None:
    monkeypatch.setenv(URL_VARIABLE, redis_url)
    with Client(queue=queue) as client:
        assert client.submit("hello").status() == "queued"


def test_queues_do_not_see_each_other(client: Client, redis_url: str, queue: str) -> None:
    client.submit("hello", id="q-1")
    with Client(redis_url, queue=f"{queue}-other") as other:
        assert other.submit("different", id="q-1").status() == "queued"
        assert other.statistics().depth == 1


def test_a_reader_stops_when_its_thread_closes_the_stream(client: Client, hands: Hands) -> None:
    job = client.submit("hello")
    begun = hands.begin_next()
    hands.publish(begun, delta(0, "a", 1))
    deltas = job.stream(timeout=20)
    next(deltas)
    before = threading.active_count()
    del deltas
    assert threading.active_count() == before
    assert hands.submit(submission("other")) == ["accepted"]
