"""What a run has on its queue, also what an execution left there that was killed: found by its group, and cancelled.

The server keeps no list of a group's requests. Each entry of a lane names its group, and stays until its request is
final; only what waits for a retry is elsewhere. Knows no rows.
"""

from collections.abc import Iterator
from contextlib import closing

from tokenmill.bulk.spec import QueueSpec
from tokenmill.wire.keys import MAX_JOBS_PER_CALL, Keys, Lane, all_keys
from tokenmill.wire.store import Store, Transitions, checked, connect

ENTRIES_PER_READ = 1_000


def cancel_leftovers(url: str, queue: QueueSpec, group: str) -> int:
    """In all partitions; how many were cancelled. UnavailableError: some may be left."""
    return sum(_cancel_in(url, keys, group) for keys in all_keys(queue.name, queue.partitions))


def _cancel_in(url: str, keys: Keys, group: str) -> int:
    with closing(Store(connect(url, key=keys.tag))) as store:
        return cancel_group(store, keys, group)


def cancel_group(store: Store, keys: Keys, group: str) -> int:
    """Every unfinished request of the group in this partition; how many were cancelled."""
    names = list(dict.fromkeys([*_queued_or_running(store, keys, group), *_waiting_for_retry(store, keys, group)]))
    replies: list[str] = []
    for start in range(0, len(names), MAX_JOBS_PER_CALL):
        replies += store.run(Transitions(keys).cancel(names[start : start + MAX_JOBS_PER_CALL]))
    return sum(reply in ("cancelled", "flagged") for reply in replies)


def _queued_or_running(store: Store, keys: Keys, group: str) -> Iterator[str]:
    for lane in Lane:
        start = "-"
        while entries := _entries(store, keys.lane(lane), start):
            yield from (fields[b"id"].decode() for _, fields in entries if fields.get(b"group") == group.encode())
            start = f"({entries[-1][0].decode()}"


def _entries(store: Store, lane: str, start: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    (entries,) = store.send([("XRANGE", lane, start, "+", "COUNT", ENTRIES_PER_READ)])
    return list(checked(entries))


def _waiting_for_retry(store: Store, keys: Keys, group: str) -> Iterator[str]:
    (names,) = store.send([("ZRANGE", keys.not_before, 0, -1)])
    yield from (name.decode() for name in checked(names) if name.startswith(f"{group}:".encode()))
