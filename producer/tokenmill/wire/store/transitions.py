"""The transitions of one partition of one queue, as pure builders of calls. Knows every script's keys and arguments.

Lua reads KEYS and ARGV in the order written here; the head of each script says the same from its side.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from tokenmill.wire.errors import PartitionsError
from tokenmill.wire.keys import (
    BELL_TTL_MS,
    BURST_HORIZON_MS,
    DEAD_MAXLEN,
    GROUP_TTL_S,
    MAX_ALONE_CRASHES,
    MAX_CRASHES,
    MAX_DEPTH,
    MAX_JOBS_PER_CALL,
    RESULT_TTL_S,
    RETRY_BACKOFF_MS,
    WORKER_INFO_TTL_MS,
    Keys,
    Lane,
)
from tokenmill.wire.messages import DeltaEntry, TerminalEntry, stream_id
from tokenmill.wire.store import procedures
from tokenmill.wire.store.calls import Argument, Call, Procedure, Script
from tokenmill.wire.store.procedures import CancelReply
from tokenmill.wire.store.values import (
    BeginReply,
    Claim,
    Delivery,
    Durability,
    Finish,
    FinishReply,
    Held,
    JobInfo,
    Publication,
    PublishReply,
    Quarantined,
    QueueStatistics,
    Renewal,
    RetryReply,
    Submission,
    SubmitReply,
)

BUSY_RETRY_AFTER_MS = 1_000


class Transitions:
    """Builders of calls; each call takes at most MAX_JOBS_PER_CALL jobs."""

    def __init__(self, keys: Keys, *, max_depth: int = MAX_DEPTH) -> None:
        self.keys = keys
        self.max_depth = max_depth
        self._lanes = tuple(keys.lane(lane) for lane in Lane)
        # What calls of every request name is made once.
        self._for_submit = (keys.deadlines, keys.not_before, *self._lanes)
        self._for_begin = (keys.workers, keys.deadlines, keys.not_before, keys.dead, *self._lanes)

    def submit(self, submissions: Sequence[Submission]) -> Call[list[SubmitReply]]:
        """Accept new requests; one reply each, in order."""
        _check_count(submissions)
        keys = [*self._for_submit]
        args: list[Argument] = [self.max_depth, BUSY_RETRY_AFTER_MS, len(submissions)]
        for new in submissions:
            keys += self.keys.of_request(new.request_id, new.group)
            args += [new.request_id, new.group or "", new.lane, _optional(new.not_before_ms), *_submission(new)]
        return _call("submit", keys, args, _submit_replies)

    def agree(self) -> Call[None]:
        """How many partitions there are, in partition 0: the first decides. PartitionsError: it did otherwise."""
        keys = self.keys
        return _call("agree", [keys.count], [keys.partitions], lambda known: _agreed(keys, known))

    def ring(self, bell: str) -> Call[None]:
        """Wake the listener that names this stream in its blocking read."""
        return _call("ring", [bell], [BELL_TTL_MS], _nothing)

    def register(self, worker: str, info: Mapping[str, str], ttl_ms: int) -> Call[None]:
        """Take a lease under a name never used before. FencedError: the name is being reaped, take another."""
        keys = [self.keys.workers, self.keys.dead_workers, self.keys.worker_info(worker), *self._lanes]
        return _call("register", keys, [worker, ttl_ms, _info_ttl_ms(ttl_ms), *_fields(info)], _nothing)

    def renew(self, worker: str, ttl_ms: int) -> Call[Renewal]:
        """Extend the lease; tells which requests to cancel, again and again until they are final."""
        keys = [self.keys.workers, self.keys.worker_info(worker), self.keys.cancels(worker)]
        return _call("renew", keys, [worker, ttl_ms, _info_ttl_ms(ttl_ms)], _renewal)

    def cancels(self, worker: str) -> Call[Renewal]:
        """The same answer as renew, without renewing."""
        return _call("cancels", [self.keys.workers, self.keys.cancels(worker)], [worker], _renewal)

    def inform(self, worker: str, info: Mapping[str, str]) -> Call[bool]:
        """Refresh what the worker tells about itself; nothing happens when it has no lease.

        True: somebody looks at the batches, so a picture of this one is wanted.
        """
        keys = [self.keys.workers, self.keys.worker_info(worker), self.keys.watch]
        return _call("inform", keys, [worker, WORKER_INFO_TTL_MS, *_fields(info)], bool)

    def begin(self, worker: str, claims: Sequence[Claim], *, fingerprint: str = "") -> Call[list[BeginReply]]:
        """Begin what the worker has read; one reply each, in order. FencedError: the worker has no lease.

        `fingerprint` of weights + tokenizer + template: tokens told under another one are reset here, atomically.
        """
        _check_count(claims)
        keys = [*self._for_begin]
        args: list[Argument] = [worker, fingerprint, GROUP_TTL_S, DEAD_MAXLEN, len(claims)]
        for claim in claims:
            keys += self.keys.of_request(claim.request_id, claim.group)
            args += _claim(claim)
        return _call("begin", keys, args, _begin_replies)

    def publish(self, worker: str, publications: Sequence[Publication]) -> Call[list[PublishReply]]:
        """Append deltas; one reply each, in order. Publishing the same twice is the same as once."""
        _check_count(publications)
        keys: list[str] = []
        args: list[Argument] = [worker, len(publications)]
        for job in publications:
            keys += [self.keys.job(job.request_id), self.keys.result(job.request_id)]
            args += [job.fence, job.epoch, *_deltas(job.entries, job.epoch)]
        return _call("publish", keys, args, _publish_replies)

    def finish(self, worker: str, finishes: Sequence[Finish]) -> Call[list[FinishReply]]:
        """Last deltas, terminal entry and ack in one; one reply each, in order."""
        _check_count(finishes)
        deadlines, not_before, *lanes = self._for_submit
        keys = [deadlines, not_before, self.keys.cancels(worker), *lanes]
        args: list[Argument] = [worker, GROUP_TTL_S, len(finishes)]
        for job in finishes:
            keys += self.keys.of_request(job.request_id, job.group)
            args += [job.request_id, job.fence, job.epoch, job.group or "", job.state, _optional(_end(job))]
            args += [*_deltas(job.deltas, job.epoch), *_fields(job.terminal.encode())]
        return _call("finish", keys, args, _finish_replies)

    def fetch(self, worker: str, count: int, lanes: Sequence[Lane]) -> Call[list[Delivery]]:
        """Up to `count` entries that nobody has, from the first of these lanes on; they are pending for the worker."""
        lane_of = {self.keys.lane(lane).encode(): lane for lane in lanes}
        return _call("fetch", list(map(self.keys.lane, lanes)), [worker, count], lambda reply: _fetched(lane_of, reply))

    def quarantine(self, worker: str) -> Call[Quarantined]:
        """One entry of the quarantine lane, unless one is at work already. FencedError: the worker has no lease."""
        keys = [self.keys.workers, self.keys.lane(Lane.QUARANTINE), self.keys.not_before]
        return _call("quarantine", keys, [worker, BURST_HORIZON_MS], _quarantined)

    def retry(self, worker: str, held: Sequence[Held]) -> Call[list[RetryReply]]:
        """Schedule running jobs anew, counted; one reply each. `exhausted`: nothing happened, it was tried enough."""
        _check_count(held)
        keys = [self.keys.not_before, self.keys.cancels(worker), *self._lanes]
        args: list[Argument] = [worker, len(RETRY_BACKOFF_MS), *RETRY_BACKOFF_MS, len(held)]
        for job in held:
            keys.append(self.keys.job(job.request_id))
            args += [job.request_id, job.fence]
        return _call("retry", keys, args, _retry_replies)

    def release(self, worker: str, held: Sequence[Held]) -> Call[int]:
        """Hand jobs back to be resumed, uncounted; how many it was. What is not ours any more is left alone."""
        _check_count(held)
        keys = [*self._lanes, self.keys.cancels(worker), *(self.keys.job(job.request_id) for job in held)]
        args: list[Argument] = [worker, len(held)]
        for job in held:
            args += [job.request_id, job.fence]
        return _call("release", keys, args, int)

    def bury(
        self,
        worker: str,
        lane: Lane,
        entry_id: str,
        fields: Mapping[bytes, bytes],
        reason: str,
        *,
        terminal: TerminalEntry | None = None,
        request_id: str,
    ) -> Call[bool]:
        """Dead-letter and ack an entry that is no request; its reader gets `terminal` if nobody owns the id."""
        keys = [self.keys.dead, self.keys.lane(lane), self.keys.job(request_id), self.keys.result(request_id)]
        args: list[Argument] = [worker, entry_id, request_id, lane.value, reason, DEAD_MAXLEN, RESULT_TTL_S]
        args += [len(fields), *(part for pair in fields.items() for part in pair)]
        args += _fields(terminal.encode() if terminal is not None else {})
        return _call("bury", keys, args, bool)

    def condemn(self, worker: str, claim: Claim, *, fence: int | None = None, code: str, message: str) -> Call[bool]:
        """End a request on which the other transitions fail: its entry is pending for `worker`, or it owns the job.

        False, and nothing happened: neither is so. An error of the server's: the fault is not the request's own.
        """
        shared = [self.keys.dead, self.keys.workers, self.keys.deadlines, self.keys.not_before]
        keys = [*shared, self.keys.cancels(worker), *self._lanes, *self.keys.of_request(claim.request_id, claim.group)]
        args: list[Argument] = [worker, _optional(fence), claim.lane.value, claim.entry_id, claim.request_id]
        args += [claim.group or "", code, message, DEAD_MAXLEN, RESULT_TTL_S, GROUP_TTL_S]
        return _call("condemn", keys, args, bool)

    def leave(self, worker: str) -> Call[bool]:
        """Remove a worker, or forget a dead one. False, and nothing happened: something is pending for it."""
        keys = [self.keys.workers, self.keys.dead_workers, self.keys.worker_info(worker), self.keys.cancels(worker)]
        return _call("leave", [*keys, *self._lanes], [worker], bool)

    def mark_dead(self, reaper: str, dead: str) -> Call[bool]:
        """First step of a takeover. False: its lease runs after all. FencedError: the reaper has no lease itself."""
        return _call("mark_dead", [self.keys.workers, self.keys.dead_workers], [reaper, dead], bool)

    def reap(self, reaper: str, dead: str, claims: Sequence[Claim]) -> Call[int]:
        """Take over what `dead` (marked so) held; how many went back to a lane. Claims are those of its deliveries."""
        _check_count(claims)
        workers = [self.keys.workers, self.keys.dead_workers]
        keys = [*workers, self.keys.deadlines, self.keys.not_before, self.keys.dead, *self._lanes]
        args: list[Argument] = [reaper, dead, GROUP_TTL_S, DEAD_MAXLEN, MAX_CRASHES, MAX_ALONE_CRASHES, len(claims)]
        for claim in claims:
            keys += self.keys.of_request(claim.request_id, claim.group)
            args += _claim(claim)
        return _call("reap", keys, args, int)

    def show(self, worker: str, picture: bytes) -> Procedure[None]:
        """The worker's batch, for those who look."""
        return Procedure(lambda: procedures.show(self.keys, worker, picture))

    def watch(self, workers: Sequence[str]) -> Procedure[dict[str, bytes]]:
        """Ask all workers to show their batches for WATCH_TTL_MS, and take what these show by now."""
        return Procedure(lambda: procedures.watch(self.keys, workers))

    # Procedures: candidates are looked up with plain commands, then a script that checks again

    def cancel(self, request_ids: Sequence[str]) -> Procedure[list[CancelReply]]:
        """What became of each: `cancelled` (final now), `flagged` (its worker stops it), `final` before, `unknown`."""
        return Procedure(lambda: procedures.cancel(self.keys, request_ids))

    def expire(self, request_ids: Sequence[str]) -> Procedure[int]:
        """Settle those that wait beyond their deadline; how many it was."""
        return Procedure(lambda: procedures.expire(self.keys, request_ids))

    def confirm(self) -> Procedure[Durability]:
        """Wait until all that was written before is on disk or, where that cannot be known, on a replica."""
        return Procedure(lambda: procedures.confirm(self.keys))

    def sweep(self) -> Procedure[int]:
        """Settle what waits beyond its deadline and queue what is due, up to MAX_JOBS_PER_CALL each; how many."""
        return Procedure(lambda: procedures.sweep(self.keys))

    def find_dead(self) -> Procedure[list[str]]:
        """Workers to reap: their lease ran out, or their reaper died, or they hold entries and are in neither set."""
        return Procedure(lambda: procedures.find_dead(self.keys))

    def next_lease_end(self) -> Procedure[int | None]:
        """In how many ms the next lease runs out, unless it is renewed; None: nobody has one."""
        return Procedure(lambda: procedures.next_lease_end(self.keys))

    def held_by(self, worker: str) -> Procedure[list[Delivery]]:
        """Up to MAX_JOBS_PER_CALL entries pending for a worker, of all lanes; deleted ones are acked on the way."""
        return Procedure(lambda: procedures.held_by(self.keys, worker))

    def inspect(self, request_id: str) -> Procedure[JobInfo | None]:
        """The job as a reader sees it; None where there is none."""
        return Procedure(lambda: procedures.inspect(self.keys, request_id))

    def statistics(self) -> Procedure[QueueStatistics]:
        """Depths, workers, ages; each figure is exact, though not all are of the same instant."""
        return Procedure(lambda: procedures.statistics(self.keys))


def _call(name: str, keys: Sequence[str], args: Sequence[Argument], parse: Any) -> Call[Any]:
    return Call(Script.load(name), keys, args, parse)


def _check_count(jobs: Sequence[object]) -> None:
    if len(jobs) > MAX_JOBS_PER_CALL:
        raise ValueError(f"at most {MAX_JOBS_PER_CALL} jobs a call, got {len(jobs)}")


def _submission(new: Submission) -> list[Argument]:
    return [new.digest, new.body, _optional(new.deadline_ms), new.result_ttl_s, GROUP_TTL_S]


def _claim(claim: Claim) -> list[Argument]:
    args: list[Argument] = [claim.lane, claim.entry_id, claim.request_id, claim.group or ""]
    return [*args, 1, *_submission(claim.raw)] if claim.raw is not None else [*args, 0]


def _deltas(entries: Sequence[DeltaEntry], epoch: int) -> list[Argument]:
    args: list[Argument] = [len(entries)]
    for entry in entries:
        end, fields = entry.end, entry.flat()
        args += (entry.offset, end, stream_id(epoch, end), len(fields) // 2, *fields)
    return args


def _end(job: Finish) -> int | None:
    return job.deltas[-1].end if job.num_tokens is None and job.deltas else job.num_tokens


def _fields(fields: Mapping[str, str]) -> list[Argument]:
    return [len(fields), *chain.from_iterable(fields.items())]


def _optional(value: int | None) -> Argument:
    return "" if value is None else value


def _info_ttl_ms(ttl_ms: int) -> int:
    return max(WORKER_INFO_TTL_MS, 3 * ttl_ms)


def _nothing(reply: object) -> None:
    return None


def _agreed(keys: Keys, known: int) -> None:
    if known != keys.partitions:
        raise PartitionsError(keys.queue, known=known, told=keys.partitions)


def _text(value: bytes | None) -> str:
    return (value or b"").decode()


def _renewal(reply: tuple[int, Iterable[bytes]]) -> Renewal:
    return Renewal(bool(reply[0]), tuple(sorted(_text(request_id) for request_id in reply[1])))


_ACCEPTED = [b"accepted", b"queued", b""]
_IS_QUEUED = SubmitReply("accepted", "queued")


def _submit_replies(replies: Sequence[Sequence[bytes]]) -> list[SubmitReply]:
    return [_IS_QUEUED if reply == _ACCEPTED else _submit_reply(*map(_text, reply)) for reply in replies]


def _submit_reply(status: Any, state: Any, retry_after_ms: str) -> SubmitReply:
    return SubmitReply(status, state or None, int(retry_after_ms) if retry_after_ms else None)


def _begin_replies(replies: Sequence[Sequence[bytes]]) -> list[BeginReply]:
    return [_begin_reply(*reply) for reply in replies]


def _begin_reply(status: bytes, request_id: bytes, *rest: bytes) -> BeginReply:
    if status != b"begun":
        return BeginReply(status=status.decode(), request_id=request_id.decode())  # type: ignore[arg-type]  # the script's
    begun_ms, fence, body, published, epoch, failed, crashed, fingerprint, *more = rest
    accepted_ms, deadline_ms, first_token_ms, ttl_s, group = more
    return BeginReply(
        "begun",
        request_id.decode(),
        int(fence),
        body,
        int(published or 0),
        int(epoch or 0),
        int(failed or 0),
        int(crashed or 0),
        fingerprint.decode() if fingerprint else "",
        int(accepted_ms),
        int(begun_ms),
        int(deadline_ms) if deadline_ms else None,
        int(first_token_ms) if first_token_ms else None,
        int(ttl_s),
        group.decode() if group else None,
    )


def _publish_replies(replies: Sequence[tuple[Any, int, int]]) -> list[PublishReply]:
    return [_publish_reply(_text(status), published, flag) for status, published, flag in replies]


def _publish_reply(status: Any, published: int, flag: int) -> PublishReply:
    return PublishReply(status, published, bool(flag))


def _finish_replies(replies: Sequence[tuple[bytes, int]]) -> list[FinishReply]:
    return [FinishReply(status.decode(), published) for status, published in replies]  # type: ignore[arg-type]  # the script's


def _fetched(lane_of: Mapping[bytes, Lane], streams: Sequence[Any]) -> list[Delivery]:
    return [
        Delivery(lane_of[key], _text(entry_id), dict(zip(flat[::2], flat[1::2], strict=True)))
        for key, entries in streams
        for entry_id, flat in entries
    ]


def _quarantined(reply: tuple[Sequence[Any], int]) -> Quarantined:
    streams, num_left = reply
    for _, entries in streams:
        for entry_id, flat in entries:
            fields = dict(zip((flat or [])[::2], (flat or [])[1::2], strict=True))  # none: deleted while pending
            return Quarantined(Delivery(Lane.QUARANTINE, _text(entry_id), fields), num_left)
    return Quarantined(None, num_left)


def _retry_replies(replies: Sequence[bytes]) -> list[Any]:
    return [_text(status) for status in replies]
