"""Operations of several round trips: candidates by plain commands, then a script that checks again. No connection.

Each is a generator of command batches that is sent their replies; see calls.py.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from redis.exceptions import ResponseError

from tokenmill.wire.keys import (
    CANCEL_TTL_S,
    DURABLE_TIMEOUT_MS,
    GROUP,
    GROUP_TTL_S,
    MAX_JOBS_PER_CALL,
    PICTURE_TTL_MS,
    WATCH_TTL_MS,
    Keys,
    Lane,
)
from tokenmill.wire.store.calls import Argument, Call, Command, Script, Steps, checked, evaluate
from tokenmill.wire.store.values import Delivery, Durability, JobInfo, LaneStatistics, QueueStatistics, WorkerStatistics

if TYPE_CHECKING:
    from tokenmill.wire.messages import JobState

CancelReply = Literal["cancelled", "flagged", "final", "unknown"]

_LOOKS = 5  # a job that moves between look and script is looked up again; nothing moves that often
_NO_GROUP = "NOGROUP"


def cancel(keys: Keys, request_ids: Sequence[str]) -> Steps[list[CancelReply]]:
    outcomes: dict[str, Any] = {}
    for _ in range(_LOOKS):
        left = [name for name in dict.fromkeys(request_ids) if outcomes.get(name, "moved") == "moved"]
        if not left:
            break
        for some in _parts(left):
            replies = yield from _cancel_part(keys, some)
            outcomes.update(zip(some, replies, strict=True))
    # One that kept moving carries its flag: begin and publish read it, only the worker's set does not name it.
    return ["flagged" if outcomes[name] == "moved" else outcomes[name] for name in request_ids]


def _cancel_part(keys: Keys, request_ids: Sequence[str]) -> Steps[list[str]]:
    found = yield from _look_up(keys, request_ids, "worker", "group")
    script_keys = [keys.deadlines, keys.not_before]
    args: list[Argument] = [GROUP_TTL_S, CANCEL_TTL_S, len(request_ids)]
    for request_id, (worker, group) in zip(request_ids, found, strict=True):
        cancels = keys.cancels(worker) if worker else keys.job(request_id)
        script_keys += [*keys.of_request(request_id, group), cancels]
        args += [request_id, worker, group]
    call: Call[list[str]] = Call(Script.load("cancel"), tuple(script_keys), tuple(args), _texts)
    return (yield from evaluate([call]))[0]


def expire(keys: Keys, request_ids: Sequence[str]) -> Steps[int]:
    settled = 0
    for some in _parts(request_ids):
        found = yield from _look_up(keys, some, "group")
        script_keys = [keys.deadlines, keys.not_before]
        args: list[Argument] = [GROUP_TTL_S, len(some)]
        for request_id, (group,) in zip(some, found, strict=True):
            script_keys += keys.of_request(request_id, group)
            args += [request_id, group]
        call = Call(Script.load("expire"), tuple(script_keys), tuple(args), int)
        settled += (yield from evaluate([call]))[0]
    return settled


def promote(keys: Keys, request_ids: Sequence[str]) -> Steps[int]:
    promoted = 0
    for some in _parts(request_ids):
        lanes = (keys.lane(lane) for lane in Lane)
        script_keys = (keys.not_before, *lanes, *(keys.job(name) for name in some))
        call = Call(Script.load("promote"), script_keys, (len(some), *some), int)
        promoted += (yield from evaluate([call]))[0]
    return promoted


def confirm(keys: Keys) -> Steps[Durability]:
    """WAITAOF and WAIT wait for the last write of their own connection, which a retry may have changed: make one."""
    mark: list[Command] = [("HSET", keys.mark, "at", 1), ("PEXPIRE", keys.mark, DURABLE_TIMEOUT_MS)]
    marked, _, synced = yield [*mark, ("WAITAOF", 1, 0, DURABLE_TIMEOUT_MS)]
    checked(marked)  # without a write of its own the answer is about some other one
    if not isinstance(synced, ResponseError):  # before 7.2, without an append-only file, or not permitted
        return "aof" if checked(synced)[0] else "memory"
    *_, num_replicas = yield [*mark, ("WAIT", 1, DURABLE_TIMEOUT_MS)]
    return "replica" if checked(num_replicas) else "memory"


def sweep(keys: Keys) -> Steps[int]:
    now_ms = yield from _server_ms()
    due = [("ZRANGEBYSCORE", key, 0, now_ms) for key in (keys.deadlines, keys.not_before)]
    late_reply, ready_reply = yield due
    late = yield from _members(keys.deadlines, late_reply)
    ready = yield from _members(keys.not_before, ready_reply)
    waiting = yield from _waiting(keys, late)
    settled = yield from expire(keys, waiting[:MAX_JOBS_PER_CALL])
    promoted = yield from promote(keys, ready[:MAX_JOBS_PER_CALL])
    return settled + promoted


def _waiting(keys: Keys, request_ids: Sequence[str]) -> Steps[list[str]]:
    """Those that nobody runs: a running one stays in the index until its owner's final word."""
    found = yield from _look_up(keys, request_ids, "state")
    return [name for name, (state,) in zip(request_ids, found, strict=True) if state != "running"]


def find_dead(keys: Keys) -> Steps[list[str]]:
    now_ms = yield from _server_ms()
    commands: list[Command] = [
        ("ZRANGEBYSCORE", keys.workers, "-inf", now_ms),
        ("ZRANGE", keys.dead_workers, 0, -1),
        ("ZRANGE", keys.workers, 0, -1),
    ]
    expired_reply, marked_reply, known_reply = yield commands
    expired = yield from _members(keys.workers, expired_reply)
    marked = yield from _members(keys.dead_workers, marked_reply)
    known = _texts(checked(known_reply))
    holders = yield from _holders(keys)
    return list(dict.fromkeys([*marked, *expired, *sorted(holders - set(known))]))


def next_lease_end(keys: Keys) -> Steps[int | None]:
    now_ms = yield from _server_ms()
    (reply,) = yield [("ZRANGEBYSCORE", keys.workers, f"({now_ms}", "+inf", "WITHSCORES", "LIMIT", 0, 1)]
    found = checked(reply)
    return int(float(found[1])) - now_ms if found else None


def _members(key: str, reply: Any) -> Steps[list[str]]:
    """Members of one of our sorted sets; what is not even text is no member of ours, and is struck off."""
    members: list[bytes] = checked(reply)
    junk = [member for member in members if not _is_text(member)]
    if junk:
        yield [("ZREM", key, *junk)]
    return [member.decode() for member in members if member not in junk]


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _holders(keys: Keys) -> Steps[set[str]]:
    """Names with entries pending, of all lanes. XPENDING's summary is exact and lists consumers that have any."""
    replies = yield [("XPENDING", keys.lane(lane), GROUP) for lane in Lane]
    return {name for reply in replies for name in _pending_summary(reply)[1]}


def held_by(keys: Keys, worker: str) -> Steps[list[Delivery]]:
    replies = yield [("XPENDING", keys.lane(lane), GROUP, "-", "+", MAX_JOBS_PER_CALL, worker) for lane in Lane]
    pending = [(lane, entry_id) for lane, reply in zip(Lane, replies, strict=True) for entry_id in _entry_ids(reply)]
    pending = pending[:MAX_JOBS_PER_CALL]
    if not pending:
        return []
    found = yield [("XRANGE", keys.lane(lane), entry_id, entry_id) for lane, entry_id in pending]
    deliveries = [_delivery(lane, entry_id, reply) for (lane, entry_id), reply in zip(pending, found, strict=True)]
    deleted = [delivery for delivery in deliveries if not delivery.fields]
    if deleted:
        yield [("XACK", keys.lane(delivery.lane), GROUP, delivery.entry_id) for delivery in deleted]
    return [delivery for delivery in deliveries if delivery.fields]


def inspect(keys: Keys, request_id: str) -> Steps[JobInfo | None]:
    names = ("state", "published", "accepted_ms", "worker", "cancel")
    ((state, published, accepted_ms, worker, cancelled),) = yield from _look_up(keys, [request_id], *names)
    if not state:
        return None
    return JobInfo(
        state=cast("JobState", state),
        published=int(published or 0),
        accepted_ms=int(accepted_ms or 0),
        worker=worker,
        is_cancelled=cancelled == "1",
    )


def show(keys: Keys, worker: str, picture: bytes) -> Steps[None]:
    (reply,) = yield [("SET", keys.picture(worker), picture, "PX", PICTURE_TTL_MS)]
    checked(reply)


def watch(keys: Keys, workers: Sequence[str]) -> Steps[dict[str, bytes]]:
    watching: Command = ("SET", keys.watch, 1, "PX", WATCH_TTL_MS)
    noted, *pictures = yield [watching, *(("GET", keys.picture(name)) for name in workers)]
    checked(noted)
    return {name: found for name, reply in zip(workers, pictures, strict=True) if (found := checked(reply)) is not None}


def statistics(keys: Keys) -> Steps[QueueStatistics]:
    commands = [command for lane in Lane for command in _lane_commands(keys.lane(lane))]
    commands += [("ZRANGE", keys.workers, 0, -1, "WITHSCORES"), ("XLEN", keys.dead), ("ZCARD", keys.not_before)]
    time, *replies = yield [("TIME",), *commands]
    now_ms = _in_ms(time)
    leases, dead_letters, scheduled = map(checked, replies[-3:])
    lanes = {
        lane.value: _lane_statistics(*replies[3 * place : 3 * place + 3], now_ms=now_ms)
        for place, lane in enumerate(Lane)
    }
    workers = yield from _worker_statistics(keys, _pairs(leases), now_ms)
    return QueueStatistics(
        queue=keys.queue, lanes=lanes, workers=workers, dead_letters=dead_letters, scheduled=scheduled
    )


def _lane_commands(lane_key: str) -> list[Command]:
    return [("XLEN", lane_key), ("XPENDING", lane_key, GROUP), ("XRANGE", lane_key, "-", "+", "COUNT", 1)]


def _lane_statistics(length: Any, pending: Any, oldest: Any, *, now_ms: int) -> LaneStatistics:
    """XLEN minus pending is the true backlog: finished entries are deleted."""
    num_pending, _ = _pending_summary(pending)
    ids = [entry[0].decode() for entry in checked(oldest)]
    age_s = max(0.0, (now_ms - int(ids[0].partition("-")[0])) / 1000) if ids else None
    return LaneStatistics(backlog=max(0, checked(length) - num_pending), in_flight=num_pending, oldest_age_s=age_s)


def _worker_statistics(
    keys: Keys, leases: Sequence[tuple[str, float]], now_ms: int
) -> Steps[tuple[WorkerStatistics, ...]]:
    if not leases:
        return ()
    replies = yield [("HGETALL", keys.worker_info(name)) for name, _ in leases]
    return tuple(
        WorkerStatistics(name=name, lease_left_s=(until_ms - now_ms) / 1000, info=_text_dict(checked(reply)))
        for (name, until_ms), reply in zip(leases, replies, strict=True)
    )


def _look_up(keys: Keys, request_ids: Sequence[str], *names: str) -> Steps[list[tuple[str, ...]]]:
    """Fields of the jobs' hashes, "" for what is not there, or is no hash."""
    if not request_ids:
        return []
    replies = yield [("HMGET", keys.job(request_id), *names) for request_id in request_ids]
    return [tuple(map(_field, [None] * len(names) if _is_no_hash(reply) else checked(reply))) for reply in replies]


def _field(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "backslashreplace")


def _is_no_hash(reply: Any) -> bool:
    return isinstance(reply, ResponseError) and "WRONGTYPE" in str(reply)


def _server_ms() -> Steps[int]:
    (reply,) = yield [("TIME",)]
    return _in_ms(reply)


def _in_ms(time: Any) -> int:
    seconds, microseconds = checked(time)
    return int(seconds) * 1000 + int(microseconds) // 1000


def _pending_summary(reply: Any) -> tuple[int, list[str]]:
    """(number of pending entries, consumers that have any)."""
    if _is_without_group(reply):
        return 0, []
    num_pending, _, _, consumers = checked(reply)
    return int(num_pending), [_text(name) for name, _ in consumers or ()]


def _entry_ids(reply: Any) -> list[str]:
    return [] if _is_without_group(reply) else [_text(row[0]) for row in checked(reply)]


def _is_without_group(reply: Any) -> bool:
    """Nobody registered here yet: nothing is pending."""
    return isinstance(reply, ResponseError) and _NO_GROUP in str(reply)


def _delivery(lane: Lane, entry_id: str, reply: Any) -> Delivery:
    entries = checked(reply)
    return Delivery(lane, entry_id, entries[0][1] if entries else {})


def _pairs(reply: Sequence[bytes]) -> list[tuple[str, float]]:
    return [(_text(name), float(score)) for name, score in zip(reply[::2], reply[1::2], strict=True)]


def _text_dict(reply: Any) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in reply.items()}


def _texts(reply: Sequence[bytes]) -> list[str]:
    return [_text(value) for value in reply]


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _parts(request_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(request_ids), MAX_JOBS_PER_CALL):
        yield request_ids[start : start + MAX_JOBS_PER_CALL]
