"""What `tokenmill doctor` makes of a server's figures. Pure functions; they ask nobody."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from ipaddress import ip_address
from statistics import median
from typing import Literal
from urllib.parse import urlsplit

from tokenmill.wire.keys import PREFIX

Status = Literal["ok", "warning", "broken"]
Info = Mapping[str, object]

OLDEST = {"redis": (6, 2), "valkey": (7, 2)}
FULL_WARNING, FULL_BROKEN = 0.8, 0.95  # of maxmemory: time to act, and too late
MAX_SKEW_MS = 1_000  # ages and deadlines shown here are the server's; a second's error misleads nobody
MAX_PING_MS = 5.0  # a claim is one round trip, a first token another: much more is felt at every answer

_COMMANDS = """
    del eval evalsha exists expire hdel hexists hget hgetall hincrby hmget hset info pexpire ping sadd select smembers
    srem time type wait xack xadd xdel xgroup xlen xpending xrange xread xreadgroup xrevrange xtrim zadd zcard zcount
    zrange zrangebyscore zrem zscore cluster|slots"""
LEAST_ACL = " ".join([f"~{PREFIX}*", *(f"+{command}" for command in _COMMANDS.split())])
# For those who work with RQ's queue as well: `bulk worker`, `bulk submit` and alike, a gateway with --files.
_RQ_COMMANDS = """
    blmove client|info client|list client|setname exec get hincrbyfloat lpush lrange lrem multi persist rpush
    script|load set subscribe unsubscribe watch zremrangebyscore"""
FOR_RUNS_ACL = " ".join(["~rq:*", "&rq:*", *(f"+{command}" for command in _RQ_COMMANDS.split())])
FOR_DURABLE_ACL = "+waitaof"  # a server before 7.2 does not know it and would refuse the whole rule


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `advice` says what to do when it is not ok."""

    check: str
    status: Status
    detail: str
    advice: str = ""


def look_at_version(info: Info) -> Finding:
    name = "valkey" if "valkey_version" in info else "redis"
    text = str(info.get(f"{name}_version", "0"))
    parts = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    wanted = ".".join(map(str, OLDEST[name]))
    if parts < OLDEST[name]:
        return Finding("version", "broken", f"{name} {text}", f"at least {wanted} is needed")
    return Finding("version", "ok", f"{name} {text} (at least {wanted})")


def look_at_eviction(info: Info) -> Finding:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy in ("noeviction", "unknown"):
        return Finding("eviction", "ok" if policy == "noeviction" else "warning", f"maxmemory-policy {policy}")
    advice = "the server would drop requests when memory is short: CONFIG SET maxmemory-policy noeviction"
    return Finding("eviction", "broken", f"maxmemory-policy {policy}", advice)


def look_at_memory(info: Info) -> Finding:
    used, limit = _number(info, "used_memory"), _number(info, "maxmemory")
    if not limit:
        advice = "the kernel would end the server when memory runs out: CONFIG SET maxmemory 2gb, say"
        return Finding("memory", "warning", f"{_megabytes(used)} used, no limit", advice)
    share = used / limit
    detail = f"{_megabytes(used)} of {_megabytes(limit)} used, {share:.0%}"
    advice = "requests are refused at the limit: more memory, more workers, or a shorter result_ttl_s"
    if share >= FULL_BROKEN:
        return Finding("memory", "broken", detail, advice)
    return Finding("memory", "warning" if share >= FULL_WARNING else "ok", detail, advice)


def look_at_persistence(info: Info, appendfsync: str | None) -> Finding:
    """`appendfsync`: None where CONFIG GET is not allowed."""
    if not info.get("aof_enabled"):
        advice = "a restart of the server would lose every request: CONFIG SET appendonly yes"
        return Finding("persistence", "warning", "append-only file off", advice)
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding("persistence", "broken", "the append-only file cannot be written", "look at the server's disk")
    if appendfsync == "no":
        advice = "a crash of the machine may lose half a minute: CONFIG SET appendfsync everysec"
        return Finding("persistence", "warning", "append-only file on, never synced", advice)
    loss = {
        "always": "synced at every write: a crash of the machine loses nothing that was accepted",
        "everysec": "synced each second: a crash of the machine may lose the last one",
    }
    return Finding("persistence", "ok", f"append-only file on, {loss.get(appendfsync or '', 'how often unknown')}")


def look_at_replicas(info: Info, min_replicas: int | None) -> Finding:
    """`min_replicas`: min-replicas-to-write, None where CONFIG GET is not allowed."""
    if info.get("role") == "slave":
        advice = "name the master, or its sentinels: redis+sentinel://HOST:PORT/SERVICE"
        return Finding("replicas", "broken", "this is a replica: it takes no requests", advice)
    count = int(_number(info, "connected_slaves"))
    if not count:
        return Finding("replicas", "ok", "none: while this server is away, nothing is accepted")
    if min_replicas == 0:
        advice = "a master cut off from them accepts what a failover will lose: CONFIG SET min-replicas-to-write 1"
        return Finding("replicas", "warning", f"{count}, and writes wait for none of them", advice)
    return Finding("replicas", "ok", f"{count}; a failover may lose what they did not have yet")


def look_at_cluster(info: Info, url: str) -> Finding:
    is_cluster, scheme = bool(info.get("cluster_enabled")), urlsplit(url).scheme
    if is_cluster and "+cluster" not in scheme:
        advice = "a slot may move to another node: redis+cluster://HOST:PORT,HOST:PORT finds it again"
        return Finding("cluster", "warning", "a node of a cluster, spoken to as if it were alone", advice)
    return Finding("cluster", "ok", "cluster: a partition's keys share one slot" if is_cluster else "no cluster")


def look_at_clock(server_ms: float, sent_ms: float, received_ms: float) -> Finding:
    """The server read its clock somewhere between `sent_ms` and `received_ms` of ours."""
    skew_ms = min((server_ms - sent_ms, server_ms - received_ms), key=abs)
    if sent_ms <= server_ms <= received_ms or abs(skew_ms) < MAX_SKEW_MS:
        return Finding("clock", "ok", "the server's and ours agree")
    direction = "ahead of" if skew_ms > 0 else "behind"
    advice = "set both by NTP; leases and deadlines follow the server's alone, so nothing is lost by it"
    return Finding("clock", "warning", f"the server is {abs(skew_ms) / 1000:.1f} s {direction} this machine", advice)


def look_at_latency(pings_ms: Sequence[float]) -> Finding:
    typical = median(pings_ms)
    detail = f"PING takes {typical:.2f} ms, at most {max(pings_ms):.2f} ms of {len(pings_ms)}"
    advice = "every first token waits for a few of these: bring worker and server closer together"
    return Finding("latency", "ok" if typical <= MAX_PING_MS else "warning", detail, advice)


def look_at_transport(url: str) -> Finding:
    """Whoever can read the network can read every prompt."""
    parts = urlsplit(url)
    if parts.scheme.partition("+")[0] == "rediss" or parts.scheme.startswith("rediss"):
        return Finding("transport", "ok", "TLS")
    if parts.scheme == "unix":
        return Finding("transport", "ok", "a unix socket")
    hosts = [_host(node) for node in parts.netloc.rpartition("@")[2].split(",")]
    if all(map(_is_local, hosts)):
        return Finding("transport", "ok", "not encrypted, and does not leave this machine")
    advice = "prompts and answers can be read on the way: rediss://, or a network that is private"
    return Finding("transport", "warning", "not encrypted, to another machine", advice)


def look_at_libraries() -> Finding:
    detail = f"redis-py {version('redis')}"
    if find_spec("hiredis") is None:
        return Finding("libraries", "warning", f"{detail}, no hiredis", "replies are read faster: pip install hiredis")
    return Finding("libraries", "ok", f"{detail}, hiredis {version('hiredis')}")


def _host(node: str) -> str:
    return re.sub(r":\d+$", "", node).strip("[]")


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host in ("", "localhost")


def _number(info: Info, name: str) -> float:
    value = info.get(name, 0)
    return float(value) if isinstance(value, int | float | str) else 0.0


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
