"""The transitions of bulk runs that RQ carries, as pure builders of calls: who may execute one. Knows no RQ."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenmill.wire.keys import RUN_LEASE_TTL_MS, RUN_TTL_S, RunKeys
from tokenmill.wire.store.calls import Argument, Call, Command, Procedure, Script, Steps, checked


class RunRenewal(NamedTuple):
    """`is_held` False: another execution has the run, this one must not write any more."""

    is_held: bool
    is_stop_wanted: bool


class Reclaimed(NamedTuple):
    """A run taken from a dead execution. `num_retaken`: how often so since it last finished a row."""

    fence: str
    num_retaken: int
    is_stop_wanted: bool


class RunRecord(NamedTuple):
    """What is known of a run. `owner` "": nobody executes it. `lease_left_s` None: it has no lease."""

    owner: str
    lease_left_s: float | None
    is_stop_wanted: bool


class RunTransitions:
    """Builders of calls; `ttl_ms` is how long a lease lasts without a sign of life."""

    def __init__(self, keys: RunKeys | None = None, *, ttl_ms: int = RUN_LEASE_TTL_MS) -> None:
        self.keys = keys or RunKeys()
        self.ttl_ms = ttl_ms

    def acquire(self, run_id: str, owner: str) -> Call[str | None]:
        """The fence; None while another execution has the run. `owner`: a name never used before."""
        return self._call("run_acquire", run_id, [owner, self.ttl_ms, RUN_TTL_S], _fence)

    def renew(self, run_id: str, owner: str, fence: str, *, has_progress: bool) -> Call[RunRenewal]:
        args: list[Argument] = [owner, fence, self.ttl_ms, RUN_TTL_S, int(has_progress)]
        return self._call("run_renew", run_id, args, lambda reply: RunRenewal(reply[0] == 1, reply[1] == 1))

    def release(self, run_id: str, owner: str, fence: str) -> Call[bool]:
        """False: another execution has the run by now. `owner` "" after `reclaim`."""
        return self._call("run_release", run_id, [owner, fence], bool)

    def reclaim(self, run_id: str) -> Call[Reclaimed | None]:
        """None: its execution is alive, or somebody else took it."""
        return self._call("run_reclaim", run_id, [self.ttl_ms, RUN_TTL_S], _reclaimed)

    def find_lapsed(self) -> Procedure[list[str]]:
        """Candidates for `reclaim`."""
        return Procedure(lambda: _find_lapsed(self.keys))

    def inspect(self, run_id: str) -> Procedure[RunRecord]:
        return Procedure(lambda: _inspect(self.keys, run_id))

    def want_stop(self, run_id: str) -> list[Command]:
        run = self.keys.run(run_id)
        return [("HSET", run, "stop", 1), ("EXPIRE", run, RUN_TTL_S)]

    def forget_stop(self, run_id: str) -> list[Command]:
        """Before a run is queued anew: what was asked of the last execution is not meant for the next."""
        return [("HDEL", self.keys.run(run_id), "stop", "retaken")]

    def _call(self, script: str, run_id: str, args: Sequence[Argument], parse: Any) -> Call[Any]:
        keys = (self.keys.run(run_id), self.keys.leases)
        return Call(Script.load(script), keys, (run_id, *args), parse)


def _fence(reply: Any) -> str | None:
    return reply[1].decode() if reply[0] == 1 else None


def _reclaimed(reply: Any) -> Reclaimed | None:
    return Reclaimed(reply[1].decode(), int(reply[2]), reply[3] == 1) if reply[0] == 1 else None


def _find_lapsed(keys: RunKeys) -> Steps[list[str]]:
    now_ms = yield from _server_ms()
    (reply,) = yield [("ZRANGEBYSCORE", keys.leases, "-inf", now_ms)]
    return [name.decode() for name in checked(reply)]


def _inspect(keys: RunKeys, run_id: str) -> Steps[RunRecord]:
    now_ms = yield from _server_ms()
    known, until_ms = yield [("HMGET", keys.run(run_id), "owner", "stop"), ("ZSCORE", keys.leases, run_id)]
    owner, stop = checked(known)
    left_s = None if checked(until_ms) is None else (float(until_ms) - now_ms) / 1000
    return RunRecord((owner or b"").decode(), left_s, stop is not None)


def _server_ms() -> Steps[int]:
    (reply,) = yield [("TIME",)]
    seconds, microseconds = checked(reply)
    return int(seconds) * 1000 + int(microseconds) // 1000
