"""`tokenmill queue` and `tokenmill doctor`: what a person and a program are told."""

import json

import pytest
import redis
from tokenmill.cli.server_checks import FOR_DURABLE_ACL, LEAST_ACL
from tokenmill.client import Client
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import Store, checked

from tests.e2e.commands import started, tokenmill

NO_SERVER = "redis://127.0.0.1:1/0"


def test_queue_counts_what_waits_per_lane(redis_url: str, queue: str) -> None:
    with Client(redis_url, queue=queue) as client:
        client.submit_many([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c", "priority": "high"}])
    answer = tokenmill("queue", "--json", "--redis", redis_url, "--queue", queue)
    told = json.loads(answer.stdout)
    assert answer.returncode == 0
    assert (told["queue"], told["depth"], told["in_flight"]) == (queue, 3, 0)
    assert (told["lanes"]["1"]["backlog"], told["lanes"]["2"]["backlog"]) == (1, 2)
    assert told["oldest_age_s"] >= 0
    text = tokenmill("queue", "--redis", redis_url, "--queue", queue).stdout
    assert "3 waiting" in text
    assert "no worker" in text


@pytest.mark.usefixtures("worker")
def test_queue_names_the_workers_and_what_they_serve(redis_url: str, queue: str) -> None:
    told = json.loads(tokenmill("queue", "--json", "--redis", redis_url, "--queue", queue).stdout)
    (worker,) = told["workers"]
    assert worker["info"]["model"] == "echo"
    text = tokenmill("queue", "--redis", redis_url, "--queue", queue).stdout
    assert worker["name"] in text
    assert "echo" in text


def test_queue_without_a_server_exits_3() -> None:
    answer = tokenmill("queue", "--redis", NO_SERVER)
    assert answer.returncode == 3
    assert "Traceback" not in answer.stderr


def checks(redis_url: str, queue: str, *more: str) -> tuple[int, dict[str, dict[str, str]]]:
    answer = tokenmill("doctor", "--json", "--redis", redis_url, "--queue", queue, *more)
    told = json.loads(answer.stdout)
    assert told["ok"] == (answer.returncode == 0)
    return answer.returncode, {check["check"]: check for check in told["checks"]}


@pytest.mark.usefixtures("worker")
def test_doctor_finds_a_good_server_fit(redis_url: str, queue: str) -> None:
    code, found = checks(redis_url, queue, "--model", "echo")
    assert code == 0
    for name in ("server", "version", "eviction", "persistence", "permissions", "workers", "model"):
        assert found[name]["status"] == "ok", found[name]


def test_doctor_leaves_no_key_behind(redis_url: str, queue: str, server: redis.Redis) -> None:
    checks(redis_url, queue)
    assert list(server.scan_iter(match=f"tm:{{{queue}.*")) == []


def test_doctor_warns_without_an_append_only_file_and_without_workers(
    redis_url: str, queue: str, server: redis.Redis
) -> None:
    server.config_set("appendonly", "no")
    try:
        code, found = checks(redis_url, queue)
    finally:
        server.config_set("appendonly", "yes")
    assert code == 0
    assert found["persistence"]["status"] == "warning"
    assert "appendonly yes" in found["persistence"]["advice"]
    assert found["workers"]["status"] == "warning"


def test_doctor_calls_an_evicting_server_broken(redis_url: str, queue: str, server: redis.Redis) -> None:
    server.config_set("maxmemory-policy", "allkeys-lru")
    try:
        code, found = checks(redis_url, queue)
        text = tokenmill("doctor", "--redis", redis_url, "--queue", queue).stdout
    finally:
        server.config_set("maxmemory-policy", "noeviction")
    assert code == 1
    assert found["eviction"]["status"] == "broken"
    assert "BROKEN" in text
    assert "-> " in text


def test_doctor_tells_a_user_without_permissions_what_is_needed(
    redis_url: str, queue: str, server: redis.Redis
) -> None:
    server.acl_setuser("reader", enabled=True, passwords=["+secret"], keys=["*"], categories=["+read", "+connection"])
    try:
        code, found = checks(redis_url.replace("redis://", "redis://reader:secret@"), queue)
    finally:
        server.acl_deluser("reader")
    assert code == 1
    assert found["permissions"]["status"] == "broken"
    assert "~tm:*" in found["permissions"]["advice"]
    assert "secret" not in json.dumps(found)


def test_a_command_that_the_server_refuses_ends_in_one_line(redis_url: str, queue: str, server: redis.Redis) -> None:
    server.acl_setuser("reader", enabled=True, passwords=["+secret"], keys=["*"], categories=["+read", "+connection"])
    try:
        answer = tokenmill("submit", "hi", "--redis", redis_url.replace("redis://", "redis://reader:secret@"))
    finally:
        server.acl_deluser("reader")
    assert answer.returncode == 1
    assert "the server refuses" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_doctor_without_a_server_says_where_it_looked_and_exits_1(queue: str) -> None:
    code, found = checks(NO_SERVER, queue)
    assert code == 1
    assert NO_SERVER in found["server"]["detail"]
    assert "TOKENMILL_REDIS_URL" in found["server"]["advice"]


def test_doctor_warns_of_a_model_that_is_not_here(redis_url: str, queue: str) -> None:
    code, found = checks(redis_url, queue, "--model", "somebody/no-such-model")
    assert code == 0
    assert found["model"]["status"] == "warning"


def test_producer_and_worker_run_with_the_least_acl_rule(redis_url: str, queue: str, server: redis.Redis) -> None:
    store = Store(server)
    checked(store.send([("ACL", "SETUSER", "least", "reset", "on", ">secret", *LEAST_ACL.split())])[0])
    store.send([("ACL", "SETUSER", "least", FOR_DURABLE_ACL)])  # an old server knows no such command
    server.acl_log_reset()
    url = redis_url.replace("redis://", "redis://least:secret@")
    try:
        with started("worker", "--model", "echo", "--redis", url, "--queue", queue), Client(url, queue=queue) as client:
            assert client.submit("hello", max_tokens=4, durable=True).result(timeout=30).usage.completion_tokens == 4
            client.submit("later", delay_s=3600, id="later").cancel()
            answer = checks(url, queue)
        assert denied(server) == set()
    finally:
        server.acl_deluser("least")
    assert answer[1]["permissions"]["status"] == answer[1]["workers"]["status"] == "ok"


def denied(server: redis.Redis) -> set[str]:
    """What the server refused to the user `least`, but for what doctor and redis-py may do without."""
    refused = {str(entry["object"]) for entry in server.acl_log() if entry["username"] == "least"}
    return refused - {"client|setinfo", "client|setname", "client", "config|get", "config"}


@pytest.mark.usefixtures("worker")
def test_doctor_tells_of_dead_letters(redis_url: str, queue: str, server: redis.Redis) -> None:
    server.xadd(Keys(queue).dead, {"reason": "conflict", "id": "q-1"})
    code, found = checks(redis_url, queue)
    assert code == 0
    assert (found["dead letters"]["status"], found["dead letters"]["detail"]) == ("warning", "1")
    for name in ("transport", "latency", "clock", "orphans", "quarantine", "replicas", "libraries"):
        assert found[name]["status"] == "ok", found[name]
