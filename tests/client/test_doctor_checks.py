"""What `tokenmill doctor` makes of figures: each finding by itself, without a server."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tokenmill.cli import queue_checks, server_checks
from tokenmill.wire.keys import Lane
from tokenmill.wire.store import LaneStatistics, QueueStatistics, WorkerStatistics

SCRIPTS = Path(__file__).parents[2] / "producer/tokenmill/wire/scripts"
EMPTY = LaneStatistics(backlog=0, in_flight=0, oldest_age_s=None)


def statistics(*, quarantined: int = 0, lease_left_s: float | None = 9.0, dead_letters: int = 0) -> QueueStatistics:
    lanes = {lane.value: EMPTY for lane in Lane}
    lanes["q"] = LaneStatistics(backlog=quarantined, in_flight=0, oldest_age_s=None)
    workers = () if lease_left_s is None else (WorkerStatistics(name="w-1", lease_left_s=lease_left_s, info={}),)
    return QueueStatistics(queue="default", lanes=lanes, workers=workers, dead_letters=dead_letters)


@pytest.mark.parametrize(
    ("info", "status"),
    [
        ({"redis_version": "6.0.16"}, "broken"),
        ({"redis_version": "6.2.0"}, "ok"),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, "ok"),
        ({}, "broken"),
    ],
)
def test_version(info: dict[str, object], status: str) -> None:
    assert server_checks.look_at_version(info).status == status


@pytest.mark.parametrize(
    ("used", "limit", "status"),
    [(10, 0, "warning"), (10, 100, "ok"), (80, 100, "warning"), (96, 100, "broken")],
)
def test_memory(used: int, limit: int, status: str) -> None:
    assert server_checks.look_at_memory({"used_memory": used, "maxmemory": limit}).status == status


@pytest.mark.parametrize(
    ("info", "fsync", "status", "word"),
    [
        ({"aof_enabled": 0}, "everysec", "warning", "off"),
        ({"aof_enabled": 1, "aof_last_write_status": "err"}, "always", "broken", "cannot be written"),
        ({"aof_enabled": 1}, "no", "warning", "never synced"),
        ({"aof_enabled": 1}, "everysec", "ok", "may lose the last one"),
        ({"aof_enabled": 1}, "always", "ok", "loses nothing"),
        ({"aof_enabled": 1}, None, "ok", "unknown"),
    ],
)
def test_persistence_says_what_a_crash_would_lose(
    info: dict[str, object], fsync: str | None, status: str, word: str
) -> None:
    finding = server_checks.look_at_persistence(info, fsync)
    assert finding.status == status
    assert word in finding.detail


@pytest.mark.parametrize(
    ("info", "min_replicas", "status"),
    [
        ({"role": "slave"}, 0, "broken"),
        ({"role": "master", "connected_slaves": 0}, 0, "ok"),
        ({"role": "master", "connected_slaves": 2}, 0, "warning"),
        ({"role": "master", "connected_slaves": 2}, 1, "ok"),
        ({"role": "master", "connected_slaves": 2}, None, "ok"),
    ],
)
def test_replicas(info: dict[str, object], min_replicas: int | None, status: str) -> None:
    assert server_checks.look_at_replicas(info, min_replicas).status == status


@pytest.mark.parametrize(
    ("enabled", "url", "status"),
    [(0, "redis://h", "ok"), (1, "redis://h", "warning"), (1, "redis+cluster://h:1,i:2", "ok")],
)
def test_cluster(enabled: int, url: str, status: str) -> None:
    assert server_checks.look_at_cluster({"cluster_enabled": enabled}, url).status == status


@pytest.mark.parametrize(
    ("server_ms", "status", "word"),
    [(100.0, "ok", "agree"), (900.0, "ok", "agree"), (9_000.0, "warning", "ahead"), (-9_000.0, "warning", "behind")],
)
def test_clock(server_ms: float, status: str, word: str) -> None:
    finding = server_checks.look_at_clock(server_ms, 50.0, 150.0)
    assert finding.status == status
    assert word in finding.detail


def test_latency() -> None:
    assert server_checks.look_at_latency([0.1, 0.2, 80.0]).status == "ok"
    assert server_checks.look_at_latency([9.0, 10.0, 11.0]).status == "warning"


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("rediss://queue.example:6379/0", "ok"),
        ("rediss+cluster://a.example:1,b.example:2", "ok"),
        ("unix:///run/redis.sock", "ok"),
        ("redis://localhost:6379", "ok"),
        ("redis://user:pw@127.0.0.1:6379/0", "ok"),
        ("redis://[::1]:6379/0", "ok"),
        ("redis+sentinel://127.0.0.1:1,queue.example:2/main", "warning"),
        ("redis://user:pw@queue.example", "warning"),
    ],
)
def test_transport(url: str, status: str) -> None:
    assert server_checks.look_at_transport(url).status == status


def test_libraries_are_told_with_their_versions() -> None:
    assert re.search(r"redis-py \d+\.\d+", server_checks.look_at_libraries().detail)


def test_workers() -> None:
    assert queue_checks.look_at_workers(statistics()).status == "ok"
    assert queue_checks.look_at_workers(statistics(lease_left_s=None)).status == "warning"
    assert "w-1" in queue_checks.look_at_workers(statistics(lease_left_s=-1.0)).detail


def test_orphans() -> None:
    assert queue_checks.look_at_orphans([], statistics()).status == "ok"
    assert "start one" in queue_checks.look_at_orphans(["w-0"], statistics(lease_left_s=None)).advice
    assert "within" in queue_checks.look_at_orphans(["w-0"], statistics()).advice


def test_quarantine_and_dead_letters() -> None:
    assert queue_checks.look_at_quarantine(statistics()).status == "ok"
    assert queue_checks.look_at_quarantine(statistics(quarantined=1)).status == "warning"
    assert queue_checks.look_at_dead_letters(statistics()).status == "ok"
    assert "dead list" in queue_checks.look_at_dead_letters(statistics(dead_letters=3)).advice


def test_the_least_acl_rule_has_every_command_of_the_scripts() -> None:
    text = "".join(script.read_text() for script in SCRIPTS.glob("*.lua"))
    called = {name.lower() for name in re.findall(r"redis\.p?call\('([A-Z]+)'", text)}
    assert called <= {word.removeprefix("+") for word in server_checks.LEAST_ACL.split()}


def computing(**info: str) -> QueueStatistics:
    return replace(statistics(), workers=(WorkerStatistics(name="w-1", lease_left_s=9.0, info=info),))


def test_attention_says_which_backend_runs_and_why_a_slower_one() -> None:
    assert queue_checks.look_at_attention(computing(device="cpu")) is None
    fast = queue_checks.look_at_attention(computing(attention_backend="cpu", attention_note=""))
    assert fast == server_checks.Finding("attention", "ok", "cpu on 1")
    slow = queue_checks.look_at_attention(
        computing(attention_backend="sdpa", attention_note="no compiler; install g++")
    )
    assert slow is not None
    assert (slow.status, slow.advice) == ("warning", "no compiler; install g++")


def test_the_head_of_greedy_rows_is_told_where_it_is_screened() -> None:
    assert queue_checks.look_at_head(computing(attention_backend="sdpa", greedy_head="")) is None
    assert queue_checks.look_at_head(computing()) is None
    found = queue_checks.look_at_head(computing(greedy_head="screened in int8"))
    assert found is not None
    assert (found.check, found.status) == ("greedy head", "ok")
    assert found.detail.startswith("screened in int8 on 1")
