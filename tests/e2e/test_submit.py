"""`tokenmill submit`, as a user types it."""

import json
import signal
from pathlib import Path

import pytest
import redis
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import Store, Transitions

from tests.e2e.commands import started, tokenmill
from tests.support.waiting import wait_until

NO_SERVER = "redis://127.0.0.1:1/0"


@pytest.mark.usefixtures("worker")
def test_an_answer_is_the_same_streamed_whole_and_as_json(redis_url: str, queue: str) -> None:
    options = ("--redis", redis_url, "--queue", queue, "--max-tokens", 24, "--seed", 7)
    whole = tokenmill("submit", "Why is the sky blue?", *options)
    streamed = tokenmill("submit", "Why is the sky blue?", *options, "--stream")
    as_json = tokenmill("submit", "Why is the sky blue?", *options, "--json")
    completion = json.loads(as_json.stdout)
    assert (whole.returncode, streamed.returncode, as_json.returncode) == (0, 0, 0)
    assert whole.stdout == streamed.stdout == completion["text"] + "\n"
    assert len(completion["token_ids"]) == completion["usage"]["completion_tokens"] == 24
    assert completion["finish_reason"] == "length"


@pytest.mark.usefixtures("worker")
def test_json_and_stream_together_give_one_object_per_line(redis_url: str, queue: str) -> None:
    answer = tokenmill("submit", "hi", "--stream", "--json", "--redis", redis_url, "--queue", queue)
    *deltas, completion = map(json.loads, answer.stdout.splitlines())
    assert {delta["type"] for delta in deltas} == {"delta"}
    assert completion["type"] == "completion"
    assert "".join(delta["text"] for delta in deltas) == completion["text"]


@pytest.mark.usefixtures("worker")
def test_a_prompt_may_come_from_standard_input_and_settings_from_the_environment(redis_url: str, queue: str) -> None:
    env = {"TOKENMILL_REDIS_URL": redis_url, "TOKENMILL_QUEUE": queue}
    given = tokenmill("submit", "two\nlines", "--seed", 1, "--json", env=env)
    piped = tokenmill("submit", "-", "--seed", 1, "--json", env=env, stdin="two\nlines")
    assert json.loads(piped.stdout)["token_ids"] == json.loads(given.stdout)["token_ids"]


@pytest.mark.usefixtures("worker")
def test_a_delayed_and_durable_request_says_where_it_is_kept_and_is_answered(redis_url: str, queue: str) -> None:
    options = ("--delay", 0.1, "--durable", "--max-tokens", 4, "--redis", redis_url, "--queue", queue)
    answer = tokenmill("submit", "hi", *options)
    assert answer.returncode == 0
    assert "kept in:" in answer.stderr
    assert answer.stdout.strip()


@pytest.mark.usefixtures("worker")
def test_the_same_id_with_another_body_is_refused(redis_url: str, queue: str) -> None:
    options = ("--id", "q-1", "--redis", redis_url, "--queue", queue, "--max-tokens", 4)
    first = tokenmill("submit", "one", *options)
    again = tokenmill("submit", "one", *options)
    other = tokenmill("submit", "another", *options)
    assert first.stdout == again.stdout
    assert other.returncode == 2
    assert "q-1" in other.stderr


def assert_told_in_one_line(stderr: str, *parts: str) -> None:
    assert "Traceback" not in stderr
    assert len(stderr.strip().splitlines()) == 1
    for part in parts:
        assert part in stderr


def test_without_a_server_it_says_so_and_exits_3() -> None:
    answer = tokenmill("submit", "hi", "--redis", NO_SERVER)
    assert answer.returncode == 3
    assert_told_in_one_line(answer.stderr, "127.0.0.1:1")


def test_a_wrong_url_is_a_usage_error() -> None:
    answer = tokenmill("submit", "hi", "--redis", "localhost")
    assert answer.returncode == 2
    assert_told_in_one_line(answer.stderr, "redis://")


@pytest.mark.parametrize("option", [("--temperature", "-1"), ("--max-tokens", "0"), ("--priority", "urgent")])
def test_a_wrong_option_is_a_usage_error(option: tuple[str, str]) -> None:
    answer = tokenmill("submit", "hi", *option)
    assert answer.returncode == 2
    assert option[0] in answer.stderr


def test_an_empty_prompt_is_a_usage_error(redis_url: str) -> None:
    answer = tokenmill("submit", "", "--raw", "--redis", redis_url)
    assert answer.returncode == 2
    assert_told_in_one_line(answer.stderr, "empty")


def test_a_model_that_nobody_serves_is_told(redis_url: str, queue: str, worker: object) -> None:
    answer = tokenmill("submit", "hi", "--model", "gpt-17", "--redis", redis_url, "--queue", queue)
    assert answer.returncode == 1
    assert_told_in_one_line(answer.stderr, "gpt-17")


def test_a_request_that_takes_too_long_is_cancelled_and_exits_4(
    redis_url: str, queue: str, keys: Keys, server: redis.Redis
) -> None:
    """Nobody works on this queue."""
    options = ("--id", "late", "--timeout", 0.2, "--redis", redis_url, "--queue", queue)
    for form in ((), ("--stream",)):
        answer = tokenmill("submit", "hi", *options, *form)
        assert answer.returncode == 4
        assert "no worker" in answer.stderr
        assert server.hget(keys.job("late"), "state") == b"cancelled"
        server.delete(keys.job("late"), keys.result("late"))


def test_ctrl_c_cancels_the_request_and_exits_130(redis_url: str, queue: str, keys: Keys, server: redis.Redis) -> None:
    with started("submit", "hi", "--id", "mine", "--redis", redis_url, "--queue", queue) as process:
        assert process.stderr is not None
        assert "no worker" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    wait_until(lambda: server.hget(keys.job("mine"), "state") == b"cancelled", description="the request is cancelled")


def test_a_model_without_a_chat_template_gets_the_prompt_raw(
    redis_url: str, queue: str, keys: Keys, server: redis.Redis, store: Store
) -> None:
    store.run(Transitions(keys).register("w-1", {"has_chat_template": "false"}, 60_000))
    tokenmill("submit", "hi", "--id", "raw", "--timeout", 0.2, "--redis", redis_url, "--queue", queue)
    assert json.loads(server.hget(keys.job("raw"), "body") or b"")["prompt"] == "hi"


def test_a_bulk_run_asks_for_raw_instead(redis_url: str, queue: str, keys: Keys, store: Store, tmp_path: Path) -> None:
    store.run(Transitions(keys).register("w-1", {"has_chat_template": "false"}, 60_000))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "hi"}\n')
    options = ("--out", tmp_path / "out.jsonl", "--redis", redis_url, "--queue", queue)
    answer = tokenmill("bulk", "run", tmp_path / "rows.jsonl", *options)
    assert answer.returncode == 2
    assert "add --raw" in answer.stderr
