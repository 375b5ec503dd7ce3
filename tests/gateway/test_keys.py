"""API keys: who is let in, what they see of each other, and what they may send in a minute and a day."""

import json
from collections.abc import Callable, Iterator

import httpx2 as httpx
import openai
import pytest
import redis
from tokenmill.cli.gateway import is_loopback
from tokenmill.gateway.keyring import ApiKey, make_key
from tokenmill.gateway.limits import duration, estimate

from tests.e2e.commands import tokenmill_here
from tests.gateway.running import RunningGateway, running_gateway
from tests.support.waiting import wait_until

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
COST = 12  # of that prompt with `max_tokens` 1 at the most: a token for four characters, and one

MakeKey = Callable[..., str]


@pytest.fixture(scope="module")
def locked(redis_url: str, echo_queue: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    files = tmp_path_factory.mktemp("files")
    with running_gateway(redis_url=redis_url, queue=echo_queue, files=files, requires_keys=True) as running:
        yield running


@pytest.fixture
def new_key(redis_url: str) -> MakeKey:
    """As an operator makes one."""

    def make(*options: object) -> str:
        made = tokenmill_here("keys", "create", "--redis", redis_url, *options)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()

    return make


def ask(
    gateway: RunningGateway, key: str | None, path: str = "/v1/chat/completions", **changes: object
) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = {"model": "echo", "messages": MESSAGES, "max_tokens": 1, **changes}
    return httpx.post(f"{gateway.url}{path}", json=body, headers=headers, timeout=30)


# --- who is let in ---


@pytest.mark.parametrize("header", ["", "Bearer", "Basic dTpw", "Bearer sk-nonsense", "Bearer ü"])
def test_without_a_right_key_nobody_is_let_in(locked: RunningGateway, header: str) -> None:
    answer = httpx.get(f"{locked.v1}/models", headers={b"Authorization": header.encode()})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")


def test_the_probes_need_no_key(locked: RunningGateway) -> None:
    assert httpx.get(f"{locked.url}/healthz").status_code == 200


def test_a_key_opens_and_a_revoked_one_does_not(locked: RunningGateway, redis_url: str, new_key: MakeKey) -> None:
    key = new_key("--tenant", "team-a")
    assert ask(locked, key).status_code == 200
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    assert ask(locked, wrong).status_code == 401
    with openai.OpenAI(base_url=locked.v1, api_key=wrong) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    key_id = key.split("-")[2]
    assert tokenmill_here("keys", "revoke", key_id, "--redis", redis_url).returncode == 0
    with running_gateway(redis_url=redis_url, queue="gateway", requires_keys=True) as fresh:
        assert ask(fresh, key).status_code == 401


def test_a_key_is_never_stored_nor_shown_again(redis_url: str, new_key: MakeKey) -> None:
    key = new_key("--tenant", "team-b", "--requests-per-minute", 7)
    with redis.Redis.from_url(redis_url) as client:
        records = b"".join(client.hgetall("tm:{gate}:keys").values())
    assert key.encode() not in records
    shown = json.loads(tokenmill_here("keys", "list", "--json", "--redis", redis_url).stdout)
    (ours,) = [one for one in shown if one["tenant"] == "team-b"]
    assert ours["limits"]["requests_per_minute"] == 7
    assert key.rpartition("-")[2] not in json.dumps(shown)
    assert "digest" not in ours


def test_a_key_that_is_not_there_cannot_be_revoked(redis_url: str) -> None:
    told = tokenmill_here("keys", "revoke", "0123456789ab", "--redis", redis_url)
    assert told.returncode == 1
    assert "keys list" in told.stderr


def test_the_record_of_a_key_comes_back_as_it_was() -> None:
    made = make_key("team", queue="q", priority="normal").key
    assert ApiKey.decode(made.encode()) == made


# --- what a key may ---


def test_tenants_do_not_see_each_others_files(locked: RunningGateway, new_key: MakeKey) -> None:
    first, second, third = new_key("--tenant", "one"), new_key("--tenant", "two"), new_key("--tenant", "one")
    with openai.OpenAI(base_url=locked.v1, api_key=first) as client:
        kept = client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch")
    with openai.OpenAI(base_url=locked.v1, api_key=second) as client:
        assert client.files.list().data == []
        with pytest.raises(openai.NotFoundError):
            client.files.content(kept.id)
        with pytest.raises(openai.NotFoundError):
            client.batches.create(input_file_id=kept.id, endpoint="/v1/chat/completions", completion_window="24h")
    with openai.OpenAI(base_url=locked.v1, api_key=third) as client:
        assert client.files.retrieve(kept.id) == kept, "a new key of the same tenant"


def test_two_keys_may_choose_the_same_id(locked: RunningGateway, new_key: MakeKey) -> None:
    for number, key in enumerate([new_key(), new_key()]):
        answer = ask(locked, key, x={"id": "mine"}, max_tokens=1 + number)
        assert answer.status_code == 200, answer.text


def test_a_key_may_not_ask_with_a_priority_above_its_own(locked: RunningGateway, new_key: MakeKey) -> None:
    key = new_key("--priority", "normal")
    refused = ask(locked, key, x={"priority": "high"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "priority_not_allowed")
    assert ask(locked, key, x={"priority": "bulk"}).status_code == 200


# --- how much ---


def test_requests_beyond_the_limit_of_a_minute_are_told_when_to_come_back(
    locked: RunningGateway, new_key: MakeKey
) -> None:
    key = new_key("--requests-per-minute", 2)
    first, second, third = (ask(locked, key) for _ in range(3))
    assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert [one.headers["x-ratelimit-remaining-requests"] for one in (first, second, third)] == ["1", "0", "0"]
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(third.headers["retry-after"]) <= 30


def test_two_gateways_share_one_count(locked: RunningGateway, redis_url: str, new_key: MakeKey) -> None:
    key = new_key("--requests-per-minute", 1)
    assert ask(locked, key).status_code == 200
    with running_gateway(redis_url=redis_url, queue="gateway", requires_keys=True) as other:
        assert ask(other, key).status_code == 429


def test_a_day_is_charged_with_what_was_really_used(locked: RunningGateway, redis_url: str, new_key: MakeKey) -> None:
    key = new_key("--tokens-per-day", 600, "--tokens-per-minute", 100_000)
    answer = ask(locked, key, max_tokens=500, stop=["e"])
    used = answer.json()["usage"]["total_tokens"]

    def counted() -> int:
        shown = json.loads(tokenmill_here("keys", "list", "--json", "--redis", redis_url).stdout)
        return next(int(one["tokens_used_today"]) for one in shown if one["id"] == key.split("-")[2])

    wait_until(lambda: counted() == used, description="the charge is settled")
    refused = ask(locked, key, max_tokens=599)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"


def test_a_stream_is_charged_and_settled_too(locked: RunningGateway, new_key: MakeKey) -> None:
    key = new_key("--tokens-per-minute", 1_000)
    with openai.OpenAI(base_url=locked.v1, api_key=key, max_retries=0) as client:
        for _ in range(3):
            stream = client.chat.completions.create(
                model="echo",
                messages=[{"role": "user", "content": "hi"}],
                max_tokens=500,
                stop=list("aeio"),
                stream=True,
            )
            assert [chunk.choices for chunk in stream][-1][0].finish_reason == "stop"


def test_more_than_the_limit_at_once_is_refused_for_good(locked: RunningGateway, new_key: MakeKey) -> None:
    refused = ask(locked, new_key("--tokens-per-minute", 100), max_tokens=101)
    assert refused.status_code == 429
    assert "Ask for fewer" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"


def test_what_a_request_may_take_is_counted_before_it_is_known() -> None:
    assert estimate({"prompt": "x" * 40, "max_tokens": 5, "n": 2}) == 20
    assert estimate({"prompt": [1, 2, 3], "max_completion_tokens": 5}) == 8
    assert estimate({"prompt": "", "max_tokens": "many"}) == 256
    assert estimate({"messages": MESSAGES, "max_tokens": 1}) > COST


def test_durations_are_written_as_openai_writes_them() -> None:
    assert [duration(ms) for ms in (0, 20, 1_000, 1_500, 360_000, 61_250)] == [
        "0ms",
        "20ms",
        "1s",
        "1.5s",
        "6m0s",
        "1m1.25s",
    ]


@pytest.mark.parametrize(
    ("host", "is_safe"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("gw.example", False)],
)
def test_an_open_door_is_one_that_others_can_reach(host: str, is_safe: bool) -> None:
    assert is_loopback(host) is is_safe
