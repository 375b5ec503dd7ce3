"""A worker's hands without a worker: claims, publishes and finishes by transitions alone. Knows no engine."""

from collections.abc import Sequence
from typing import Literal

import redis
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.messages import DeltaEntry, ErrorInfo, Request, TerminalEntry, Usage
from tokenmill.wire.store import (
    BeginReply,
    Claim,
    Delivery,
    Finish,
    FinishReply,
    Held,
    Publication,
    PublishReply,
    Renewal,
    Store,
    Submission,
    Transitions,
    checked,
)

from tests.support.waiting import wait_until

LEASE_MS = 15_000


def submission(request_id: str = "q-1", *, lane: Lane = Lane.NORMAL, **fields: object) -> Submission:
    return Submission.of(request_id, Request.build(**({"prompt": "hello"} | fields)), lane)


def delta(offset: int, text: str, *token_ids: int, index: int = 0) -> DeltaEntry:
    return DeltaEntry(offset=offset, text=text, token_ids=token_ids, index=index)


def done(text: str, num_tokens: int = 0) -> TerminalEntry:
    usage = Usage(prompt_tokens=1, completion_tokens=num_tokens)
    return TerminalEntry(type="done", finish_reason="length", text=text, usage=usage)


def failed(code: str, message: str) -> TerminalEntry:
    return TerminalEntry(type="error", finish_reason="error", error=ErrorInfo(code=code, message=message))


class Hands:
    """One registered worker on one queue."""

    def __init__(self, store: Store, keys: Keys, worker: str = "w-1") -> None:
        self.store, self.keys, self.worker = store, keys, worker
        self.transitions = Transitions(keys)
        store.run(self.transitions.register(worker, {"model": "echo"}, LEASE_MS))

    def submit(self, *submissions: Submission) -> list[str]:
        return [reply.status for reply in self.store.run(self.transitions.submit(submissions))]

    def fetch(self, lane: Lane = Lane.NORMAL) -> list[Delivery]:
        """What this worker reads from one lane now."""
        command = ("XREADGROUP", "GROUP", "w", self.worker, "COUNT", 100, "STREAMS", self.keys.lane(lane), ">")
        streams = checked(self.store.send([command])[0])
        return [Delivery(lane, entry_id.decode(), fields) for _, entries in streams for entry_id, fields in entries]

    def wait_for_work(self, lane: Lane = Lane.NORMAL) -> BeginReply:
        """The next request, begun; blocks until there is one."""
        block = ("XREAD", "BLOCK", 4_000, "STREAMS", self.keys.lane(lane), "0-0")
        checked(self.store.send([block])[0])
        return self.begin_next(lane)

    def begin(self, *claims: Claim, fingerprint: str = "") -> list[BeginReply]:
        return self.store.run(self.transitions.begin(self.worker, claims, fingerprint=fingerprint))

    def begin_next(self, lane: Lane = Lane.NORMAL, *, fingerprint: str = "") -> BeginReply:
        (delivery,) = self.fetch(lane)
        (reply,) = self.begin(delivery.claim(), fingerprint=fingerprint)
        return reply

    def publish(self, job: BeginReply, *entries: DeltaEntry) -> PublishReply:
        call = self.transitions.publish(self.worker, [Publication(job.request_id, job.fence, job.epoch, entries)])
        (reply,) = self.store.run(call)
        return reply

    def finish(
        self,
        job: BeginReply,
        terminal: TerminalEntry,
        *deltas: DeltaEntry,
        state: Literal["done", "failed", "cancelled", "expired", "dead"] = "done",
        num_tokens: int | None = None,
    ) -> FinishReply:
        last = Finish(
            request_id=job.request_id,
            fence=job.fence,
            epoch=job.epoch,
            deltas=deltas,
            terminal=terminal,
            state=state,
            group=job.group,
            num_tokens=num_tokens,
        )
        (reply,) = self.store.run(self.transitions.finish(self.worker, [last]))
        return reply

    def release(self, *jobs: BeginReply) -> int:
        return self.store.run(self.transitions.release(self.worker, [Held(job.request_id, job.fence) for job in jobs]))

    def renew(self, ttl_ms: int = LEASE_MS) -> Renewal:
        return self.store.run(self.transitions.renew(self.worker, ttl_ms))

    def cancel(self, *request_ids: str) -> Sequence[str]:
        return self.store.run(self.transitions.cancel(request_ids))

    def entries(self, request_id: str) -> list[tuple[str, dict[bytes, bytes]]]:
        """The result stream of a request."""
        return stream_entries(self.store, self.keys.result(request_id))


def stream_entries(store: Store, key: str) -> list[tuple[str, dict[bytes, bytes]]]:
    entries = checked(store.send([("XRANGE", key, "-", "+")])[0])
    return [(entry_id.decode(), fields) for entry_id, fields in entries]


def hash_fields(store: Store, key: str) -> dict[str, str]:
    fields = checked(store.send([("HGETALL", key)])[0])
    return {name.decode(): value.decode() for name, value in fields.items()}


def add_raw(store: Store, keys: Keys, lane: Lane = Lane.NORMAL, **fields: str | bytes) -> str:
    """A bare XADD, as any language sends it; the entry's id."""
    flat = [part for pair in fields.items() for part in pair]
    entry_id: bytes = checked(store.send([("XADD", keys.lane(lane), "*", *flat)])[0])
    return entry_id.decode()


def server_ms(server: redis.Redis) -> float:
    seconds, microseconds = server.time()
    return seconds * 1000 + microseconds / 1000


def reap(hands: Hands, dead: str) -> int:
    """What a reaper does with one dead worker, in its order."""
    store, transitions = hands.store, hands.transitions
    assert store.run(transitions.mark_dead(hands.worker, dead))
    claims = [delivery.claim() for delivery in store.run(transitions.held_by(dead))]
    num_reaped = store.run(transitions.reap(hands.worker, dead, claims))
    assert store.run(transitions.reap(hands.worker, dead, claims)) == 0
    assert store.run(transitions.leave(dead))
    return num_reaped


def die(hands: Hands) -> None:
    """The lease runs out at once."""
    hands.renew(ttl_ms=0)
    wait_until(lambda: hands.worker in hands.store.run(hands.transitions.find_dead()), description="the lease ran out")
