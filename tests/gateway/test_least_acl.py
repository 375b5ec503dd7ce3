"""A gateway as a user of the server who may do no more than `tokenmill doctor` says, with and without files."""

from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
import redis
from tokenmill.cli.server_checks import FOR_RUNS_ACL, LEAST_ACL
from tokenmill.wire.store import Store, checked

from tests.e2e.commands import started
from tests.gateway.running import running_gateway
from tests.packaging.ask_batch import main as ask_batch

USER = "gate"
DONE_WITHOUT = {"client|setinfo", "client|setname", "client"}  # redis-py goes on without them
ASKED = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def url_of_user(server: redis.Redis, redis_url: str, rule: str) -> str:
    checked(Store(server).send([("ACL", "SETUSER", USER, "reset", "on", ">secret", *rule.split())])[0])
    server.acl_log_reset()
    return redis_url.replace("redis://", f"redis://{USER}:secret@")


def denied(server: redis.Redis) -> set[str]:
    refused = {str(entry["object"]) for entry in server.acl_log() if entry["username"] == USER}
    return refused - DONE_WITHOUT


@pytest.fixture(autouse=True)
def _no_user_is_left(server: redis.Redis) -> Iterator[None]:
    yield
    server.acl_deluser(USER)


def test_a_gateway_needs_the_least_rule_and_no_more(server: redis.Redis, redis_url: str, echo_queue: str) -> None:
    url = url_of_user(server, redis_url, LEAST_ACL)
    with running_gateway(redis_url=url, queue=echo_queue) as gateway, httpx.Client(base_url=gateway.url) as http:
        assert http.post("/v1/chat/completions", json=ASKED, timeout=30).status_code == 200
        assert http.post("/v1/chat/completions", json=ASKED | {"stream": True}, timeout=30).status_code == 200
        assert http.post("/v1/responses", json={"input": "hello", "background": True}).status_code == 200
        for path in ("/", "/v1/models", "/readyz", "/metrics", "/fleet/snapshot"):
            assert http.get(path).status_code == 200, path
    assert denied(server) == {"lrange"}, "RQ's list of bulk runs: without it the dashboard shows none"


def test_batches_need_the_rule_for_runs_beside_it(
    server: redis.Redis, redis_url: str, echo_queue: str, tmp_path: Path
) -> None:
    url = url_of_user(server, redis_url, f"{LEAST_ACL} {FOR_RUNS_ACL}")
    with (
        started("bulk", "worker", "--redis", url, "--files", str(tmp_path)),
        running_gateway(redis_url=url, queue=echo_queue, files=tmp_path) as gateway,
    ):
        ask_batch(gateway.url)
    assert denied(server) == set()
