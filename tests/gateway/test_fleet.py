"""What the gateway tells of the fleet, the page's files, and the one thing that the page may change."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
import redis
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.messages import Request

from tests.e2e.commands import tokenmill_here
from tests.gateway.running import RunningGateway, running_gateway
from tests.support.waiting import wait_until

PAGE = {"X-Tokenmill-Page": "1"}


@pytest.fixture
def admin(redis_url: str, queue: str) -> Iterator[httpx.Client]:
    """A gateway that may redrive, in front of a queue of the test's own."""
    with (
        running_gateway(redis_url=redis_url, queue=queue, allow_admin=True) as running,
        httpx.Client(base_url=running.url, timeout=30) as client,
    ):
        yield client


def events_of(client: httpx.Client) -> Iterator[tuple[str, dict[str, object]]]:
    """Each server-sent event as (name, what it tells)."""
    with client.stream("GET", "/fleet/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def test_a_snapshot_tells_of_queue_and_workers(http: httpx.Client) -> None:
    told = http.get("/fleet/snapshot").json()
    assert told["can_redrive"] is False
    assert [lane["name"] for lane in told["look"]["lanes"]] == ["resume", "high", "normal", "bulk", "quarantine"]
    assert told["look"]["workers"][0]["model"] == "echo"


def test_who_follows_hears_who_we_are_then_looks_then_pictures(http: httpx.Client) -> None:
    names = []
    for name, _ in events_of(http):
        names.append(name)
        if "pictures" in names:
            break
    assert names[0] == "about"
    assert names.index("look") < names.index("pictures")


def test_a_request_is_seen_in_the_batch_without_its_words(http: httpx.Client) -> None:
    for name, told in events_of(http):
        assert "SECRET" not in json.dumps(told)
        if name == "pictures" and told:  # the worker draws now
            (picture,) = told.values()
            if picture["bars"]:  # type: ignore[index]  # a picture's own shape
                break
            http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "SECRET"}]})


def test_nobody_is_asked_when_nobody_looks(gateway: RunningGateway, http: httpx.Client) -> None:
    feed = gateway.app.state.gateway.feed()
    next(events_of(http))
    wait_until(lambda: feed._task is None, description="the last watcher left")


def test_the_page_may_load_nothing_from_elsewhere(http: httpx.Client) -> None:
    page = http.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.findall(r"(?:src|href)=\"(?!/page/|#)", page.text)
    for name in re.findall(r"/page/([a-z.]+)", page.text):
        assert http.get(f"/page/{name}").status_code == 200


def test_a_part_of_the_page_that_is_known_is_not_sent_again(http: httpx.Client) -> None:
    first = http.get("/page/page.css")
    again = http.get("/page/page.css", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert http.get("/page/nothing.js").status_code == 404
    assert http.get("/page/..%2Fapp.py").status_code == 404


def bury_one(server: redis.Redis, keys: Keys) -> str:
    """A request that was given up: a letter tells of it. Returns the letter's name."""
    body = Request.build(prompt="hello", max_tokens=1).encode()
    letter = {"reason": "worker_crashed", "id": "poison", "lane": Lane.NORMAL.value, "entry": "1-0", "body": body}
    name: Any = server.xadd(keys.dead, letter)  # type: ignore[arg-type]  # a dict's type cannot vary in redis-py
    return str(name.decode())


def test_a_dead_letter_is_redriven_under_a_new_id(admin: httpx.Client, server: redis.Redis, keys: Keys) -> None:
    name = bury_one(server, keys)
    reply = admin.post("/fleet/dead-letters/redrive", json={"names": [name]}, headers=PAGE)
    assert reply.json()["letters"][0]["new_id"] == "poison~1"
    assert admin.get("/fleet/snapshot").json()["look"]["num_dead_letters"] == 0
    assert admin.post("/fleet/dead-letters/redrive", json={"names": [name]}, headers=PAGE).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {**PAGE, "Origin": "https://elsewhere.example"},
        {**PAGE, "Sec-Fetch-Site": "cross-site"},
        {**PAGE, "Origin": "null"},
    ],
)
def test_another_sites_page_cannot_redrive(
    admin: httpx.Client, server: redis.Redis, keys: Keys, headers: dict[str, str]
) -> None:
    name = bury_one(server, keys)
    reply = admin.post("/fleet/dead-letters/redrive", json={"names": [name]}, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_origin")
    assert admin.get("/fleet/snapshot").json()["look"]["num_dead_letters"] == 1


def test_a_gateway_that_was_not_told_so_redrives_nothing(http: httpx.Client) -> None:
    reply = http.post("/fleet/dead-letters/redrive", json={"names": ["1-0"]}, headers=PAGE)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "not_allowed")


def test_with_api_keys_nobody_looks_without_one_and_one_of_a_queue_sees_that_alone(
    redis_url: str, queue: str, server: redis.Redis
) -> None:
    made = tokenmill_here("keys", "create", "--queue", f"{queue}-own", "--redis", redis_url, "--json")
    key = {"Authorization": f"Bearer {json.loads(made.stdout)['key']}"}
    with (
        running_gateway(redis_url=redis_url, queue=queue, requires_keys=True, allow_admin=True) as running,
        httpx.Client(base_url=running.url, timeout=30) as client,
    ):
        for path in ("/fleet/snapshot", "/fleet/events"):
            assert client.get(path).status_code == 401
        redriven = client.post("/fleet/dead-letters/redrive", json={"names": ["1-0"]}, headers=PAGE)
        assert redriven.status_code == 401
        assert client.get("/").status_code == 200
        look = client.get("/fleet/snapshot", headers=key).json()["look"]
    assert (look["queue"], look["runs"]) == (f"{queue}-own", None)
