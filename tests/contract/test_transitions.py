"""Each transition against a real server: what it does once, it does no more when it is repeated."""

from dataclasses import replace
from functools import cached_property
from typing import Any

import pytest
import redis
from redis.crc import key_slot
from tokenmill.wire.errors import DecodeError, FencedError
from tokenmill.wire.keys import MAX_CRASHES, MAX_JOBS_PER_CALL, Keys, Lane
from tokenmill.wire.messages import Request
from tokenmill.wire.store import Call, Delivery, Finish, Publication, Script, Store, Transitions

from tests.support.hands import (
    LEASE_MS,
    Hands,
    add_raw,
    delta,
    done,
    failed,
    hash_fields,
    stream_entries,
    submission,
)
from tests.support.servers import keys_without_ttl
from tests.support.waiting import wait_until

# Put before a script: a key that is not in KEYS fails the call. A server checks this only across slots.
GUARD = """
local server, declared = redis, {}
for _, name in ipairs(KEYS) do declared[name] = true end
local function guarded(run)
  return function(...)
    local command, first, second = ...
    local name = command == 'XGROUP' and second or first
    if command ~= 'TIME' and not declared[name] then error('undeclared key ' .. tostring(name)) end
    return run(...)
  end
end
local redis = {call = guarded(server.call), pcall = guarded(server.pcall), error_reply = server.error_reply}
"""


class GuardedScript(Script):
    @cached_property
    def text(self) -> str:
        return GUARD + super().text


@pytest.fixture(autouse=True)
def _only_declared_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every script of every test in this file."""
    monkeypatch.setattr(Script, "load", classmethod(lambda cls, name: GuardedScript(name)))


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


# --- submit ---


def test_a_request_goes_from_submit_to_its_terminal_entry(hands: Hands, server: redis.Redis, keys: Keys) -> None:
    assert hands.submit(submission(max_tokens=3)) == ["accepted"]
    job = hands.begin_next()
    assert Request.decode(job.body) == Request.build(prompt="hello", max_tokens=3)
    assert hands.publish(job, delta(0, "a", 7)).published == 1
    assert hands.finish(job, done("abc", 3), delta(1, "bc", 8, 9)).published == 3
    assert [entry_id for entry_id, _ in hands.entries("q-1")] == ["1-0", "3-0", "3-1"]
    assert server.xlen(keys.lane(Lane.NORMAL)) == 0


def test_submitting_twice_is_the_same_as_once(hands: Hands, server: redis.Redis, keys: Keys) -> None:
    assert hands.submit(submission(), submission()) == ["accepted", "dup"]
    assert hands.submit(submission(prompt="other")) == ["conflict"]
    assert server.xlen(keys.lane(Lane.NORMAL)) == 1


def test_a_full_lane_answers_busy_and_keeps_nothing(store: Store, keys: Keys) -> None:
    narrow = Transitions(keys, max_depth=1)
    replies = store.run(narrow.submit([submission("a"), submission("b"), submission("c", lane=Lane.HIGH)]))
    assert [reply.status for reply in replies] == ["accepted", "busy", "accepted"]
    assert replies[1].retry_after_ms
    assert not store.client.exists(keys.job("b"))


def test_a_call_takes_no_more_jobs_than_the_server_may_be_blocked_for(transitions: Transitions) -> None:
    with pytest.raises(ValueError, match="at most 100 jobs"):
        transitions.submit([submission()] * (MAX_JOBS_PER_CALL + 1))


def test_a_request_with_a_start_time_is_queued_when_it_has_come(hands: Hands) -> None:
    hands.submit(replace(submission(), not_before_ms=20))
    assert hands.fetch() == []
    wait_until(lambda: hands.store.run(hands.transitions.sweep()), description="the sweep queued it")
    assert hands.begin_next().status == "begun"


# --- begin ---


def test_beginning_twice_gives_the_same_fence(hands: Hands) -> None:
    hands.submit(submission())
    (delivery,) = hands.fetch()
    assert hands.begin(delivery.claim())[0].fence == hands.begin(delivery.claim())[0].fence == 1


def test_a_worker_without_a_lease_begins_nothing(store: Store, transitions: Transitions) -> None:
    with pytest.raises(FencedError):
        store.run(transitions.begin("stranger", []))


def test_an_entry_whose_job_expired_is_acked(hands: Hands, server: redis.Redis, keys: Keys) -> None:
    hands.submit(submission())
    server.delete(keys.job("q-1"))
    assert hands.begin_next().status == "skipped"
    assert server.xlen(keys.lane(Lane.NORMAL)) == 0


def test_a_request_past_its_deadline_is_settled_before_it_is_begun(hands: Hands) -> None:
    hands.submit(submission(deadline_s=0.001))
    deadline_ms = int(hash_fields(hands.store, hands.keys.job("q-1"))["deadline_ms"])
    wait_until(lambda: server_ms(hands.store.client) >= deadline_ms, description="it is past its deadline")
    assert hands.begin_next().status == "expired"
    assert hands.entries("q-1")[-1][1][b"type"] == b"expired"


def test_a_raw_entry_becomes_a_job_under_its_lane_and_entry_id(hands: Hands, store: Store, keys: Keys) -> None:
    entry_id = add_raw(store, keys, prompt="why")
    job = hands.begin_next()
    assert job.request_id == f"2-{entry_id}"
    assert Request.decode(job.body).prompt == "why"


def test_a_raw_entry_with_the_same_body_is_absorbed(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission(max_tokens=5))
    hands.begin_next()
    add_raw(store, keys, body='{ "max_tokens": 5, "prompt": "hello" }', id="q-1")
    assert hands.begin_next().status == "skipped"
    assert store.client.xlen(keys.dead) == 0
    assert store.client.xlen(keys.lane(Lane.NORMAL)) == 1


def test_a_raw_entry_with_another_body_is_dead_lettered(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    first = hands.begin_next()
    add_raw(store, keys, prompt="other", id="q-1")
    assert hands.begin_next().status == "conflict"
    ((_, letter),) = stream_entries(store, keys.dead)
    assert (letter[b"reason"], letter[b"id"]) == (b"conflict", b"q-1")
    assert hands.finish(first, done("")).status == "ok"


def test_another_fingerprint_resets_what_was_told(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    hands.publish(hands.begin_next(fingerprint="one"), delta(0, "a", 1))
    die(hands)
    second = Hands(store, keys, "w-2")
    assert reap(second, "w-1") == 1
    again = second.begin_next(Lane.RESUME, fingerprint="two")
    assert (again.epoch, again.published) == (1, 0)
    assert second.publish(again, delta(0, "z", 9)).status == "ok"
    assert [entry_id for entry_id, _ in hands.entries("q-1")] == ["1-0", "4294967296-0", "4294967297-0"]


# --- publish and finish ---


def test_a_delta_told_already_is_left_out_and_a_gap_is_refused(hands: Hands) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    assert [hands.publish(job, delta(0, "ab", 1, 2)).status for _ in range(2)] == ["ok", "ok"]
    for gap in (delta(3, "d", 4), delta(1, "bc", 2, 3)):
        reply = hands.publish(job, gap)
        assert (reply.status, reply.published) == ("gap", 2)
    assert len(hands.entries("q-1")) == 1


def test_offsets_beyond_doubles_of_fourteen_digits_stay_exact(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    store.client.hset(keys.job("q-1"), mapping={"epoch": 1_000_003, "published": 4_294_967_290})
    far = replace(job, epoch=1_000_003)
    hands.publish(far, delta(4_294_967_290, "abc", 1, 2, 3))
    hands.finish(far, done("abc"))
    told = 1_000_003 << 32 | 4_294_967_293
    assert [entry_id for entry_id, _ in hands.entries("q-1")] == [f"{told}-0", f"{told}-1"]


def test_finishing_twice_writes_one_terminal_entry(hands: Hands) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    assert [hands.finish(job, done("a", 1), delta(0, "a", 1)).status for _ in range(2)] == ["ok", "ok"]
    assert [fields[b"type"] for _, fields in hands.entries("q-1")] == [b"delta", b"done"]


def test_a_finish_that_misses_tokens_is_refused_whole(hands: Hands, server: redis.Redis, keys: Keys) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    assert hands.finish(job, done("ab", 2), delta(1, "b", 2)).status == "gap"
    assert hands.finish(job, done("ab", 2), num_tokens=2).status == "gap"
    assert hands.entries("q-1") == []
    assert server.xlen(keys.lane(Lane.NORMAL)) == 1


def test_a_writer_with_an_old_fence_or_another_name_is_fenced(hands: Hands) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    for writer, its_job in (("w-1", replace(job, fence=job.fence - 1)), ("w-2", job), ("w-1", replace(job, epoch=1))):
        hands.worker = writer
        assert hands.publish(its_job, delta(0, "a", 1)).status == "fenced"
        assert hands.finish(its_job, done("")).status == "fenced"
        assert hands.release(replace(its_job, fence=0)) == 0
    assert hands.entries("q-1") == []


def test_one_call_serves_many_jobs_each_on_its_own(hands: Hands, transitions: Transitions, store: Store) -> None:
    hands.submit(*(submission(f"q-{i}") for i in range(3)))
    jobs = hands.begin(*(delivery.claim() for delivery in hands.fetch()))
    stale = replace(jobs[1], fence=9)
    finishes = [
        Finish(request_id=job.request_id, fence=job.fence, epoch=0, terminal=done(""), state="done")
        for job in (jobs[0], stale, jobs[2])
    ]
    assert [reply.status for reply in store.run(transitions.finish("w-1", finishes))] == ["ok", "fenced", "ok"]


def test_scripts_survive_a_flush_inside_a_pipeline(hands: Hands, server: redis.Redis) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    calls = [
        hands.transitions.publish("w-1", [Publication("q-1", job.fence, job.epoch, (delta(offset, "x", offset),))])
        for offset in range(3)
    ]
    server.script_flush()
    assert [reply.published for (reply,) in hands.store.pipeline(calls)] == [1, 2, 3]


# --- groups, lifetimes, keys ---


def test_a_group_counts_its_requests_and_fans_in_the_final_ones(hands: Hands, keys: Keys) -> None:
    hands.submit(*(submission(f"q-{i}", group="run") for i in range(3)))
    hands.cancel("q-2")
    first, second, third = hands.begin(*(delivery.claim() for delivery in hands.fetch()))
    assert third.status == "skipped"
    hands.finish(first, done(""))
    hands.finish(second, failed("boom", "it broke"), state="failed")
    counts = {"total": "3", "done": "1", "failed": "1", "cancelled": "1"}
    assert hash_fields(hands.store, keys.group("run")) == counts
    finals = [fields[b"id"].decode() for _, fields in stream_entries(hands.store, keys.group_done("run"))]
    assert finals == ["q-2", "q-0", "q-1"]


def test_at_rest_every_key_but_the_lanes_and_the_dead_letters_expires(
    hands: Hands, server: redis.Redis, queue: str, keys: Keys
) -> None:
    hands.submit(submission("a", group="run", deadline_s=60), submission("b", deadline_s=60), submission("c"))
    first, second, third = hands.begin(*(delivery.claim() for delivery in hands.fetch()))
    hands.finish(first, done("a", 1), delta(0, "a", 1))
    hands.cancel("b")
    hands.finish(second, done(""), state="cancelled")
    add_raw(hands.store, keys, nonsense="x")
    (broken,) = hands.fetch()
    hands.store.run(
        hands.transitions.bury(
            "w-1", broken.lane, broken.entry_id, broken.fields, "nonsense", terminal=failed("x", "y"), request_id="d"
        )
    )
    hands.finish(third, done(""))
    assert hands.store.run(hands.transitions.leave("w-1"))
    assert keys_without_ttl(server, queue) == {keys.dead, *(keys.lane(lane) for lane in Lane)}


def test_a_result_lives_as_long_as_its_request_says(hands: Hands, server: redis.Redis, keys: Keys) -> None:
    hands.submit(submission(result_ttl_s=77))
    hands.finish(hands.begin_next(), done(""))
    assert 70 < server.ttl(keys.job("q-1")) <= 77
    assert 70 < server.ttl(keys.result("q-1")) <= 77


def test_a_call_stays_in_one_slot_of_a_cluster(transitions: Transitions) -> None:
    calls: list[Call[Any]] = [
        transitions.submit([submission(group="g")]),
        transitions.register("w", {}, LEASE_MS),
        transitions.begin("w", [Delivery(Lane.NORMAL, "1-0", {b"id": b"q", b"group": b"g"}).claim()]),
        transitions.reap("w", "v", []),
        transitions.leave("w"),
    ]
    assert len({key_slot(key.encode()) for call in calls for key in call.keys}) == 1


def test_a_script_that_touches_an_undeclared_key_would_be_caught_here(store: Store, keys: Keys) -> None:
    call = Call(Script.load("leave"), (keys.workers,) * 8, ("w",), bool)  # its ninth key is missing
    with pytest.raises(redis.ResponseError, match="undeclared key"):
        store.run(call)


# --- cancel and deadlines ---


def test_cancelling_what_waits_is_final_at_once(hands: Hands) -> None:
    hands.submit(submission())
    assert hands.cancel("q-1", "nobody") == ["cancelled", "unknown"]
    assert hands.cancel("q-1") == ["final"]
    assert hands.begin_next().status == "skipped"
    assert hands.entries("q-1")[-1][0] == "0-1"


def test_cancelling_what_runs_flags_it_for_its_worker(hands: Hands) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    assert [hands.cancel("q-1"), hands.cancel("q-1")] == [["flagged"], ["flagged"]]
    assert hands.renew().cancelled == ("q-1",)
    assert hands.publish(job, delta(0, "a", 1)).is_cancelled
    hands.finish(job, done("a", 1), state="cancelled")
    assert hands.renew().cancelled == ()


def test_a_cancelled_request_keeps_what_its_readers_have_seen(hands: Hands) -> None:
    hands.submit(submission(n=2))
    job = hands.begin_next()
    hands.publish(job, delta(0, "one ", 1), delta(1, 'zw"ei/é', 2, index=1), delta(2, "more", 3))
    hands.release(job)
    assert hands.cancel("q-1") == ["cancelled"]
    entry_id, fields = hands.entries("q-1")[-1]
    assert entry_id == "3-1"
    assert fields[b"text"] == b"one more"
    assert 'zw\\"ei\\/é' in fields[b"choices"].decode()


def test_the_sweep_expires_what_waits_and_leaves_what_runs(hands: Hands) -> None:
    hands.submit(submission("runs", deadline_s=0.3))
    hands.begin_next()
    hands.submit(submission("waits", deadline_s=0.001), submission("later", deadline_s=60))
    wait_until(lambda: hands.store.run(hands.transitions.sweep()) == 1, description="one request expired")
    assert hands.entries("waits")[-1][1][b"type"] == b"expired"
    assert hands.entries("runs") == hands.entries("later") == []


# --- drain and takeover ---


def test_what_a_worker_hands_back_is_continued_where_it_stood(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    hands.publish(job, delta(0, "a", 1))
    assert [hands.release(job), hands.release(job)] == [1, 0]
    assert store.run(hands.transitions.leave("w-1"))
    second = Hands(store, keys, "w-2")
    again = second.begin_next(Lane.RESUME)
    assert (again.published, again.crashed, again.fence) == (1, 0, job.fence + 1)


def test_a_worker_that_holds_something_cannot_leave(hands: Hands, store: Store) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    assert not store.run(hands.transitions.leave("w-1"))
    hands.finish(job, done(""))
    assert store.run(hands.transitions.leave("w-1"))
    assert hands.renew().is_fenced


def test_a_dead_workers_requests_are_taken_over_and_its_late_writes_refused(
    hands: Hands, store: Store, keys: Keys
) -> None:
    hands.submit(submission("ran"), submission("was-read"))
    entry_id = add_raw(store, keys, prompt="raw")
    ran, *_ = hands.fetch()
    (job,) = hands.begin(ran.claim())
    die(hands)
    second = Hands(store, keys, "w-2")
    assert reap(second, "w-1") == 3
    assert hands.renew().is_fenced
    assert hands.publish(job, delta(0, "a", 1)).status == "fenced"
    assert hands.finish(job, done("")).status == "fenced"
    resumed = second.begin(*(delivery.claim() for delivery in second.fetch(Lane.RESUME)))
    assert [reply.request_id for reply in resumed] == ["ran", "was-read", f"2-{entry_id}"]
    assert [reply.crashed for reply in resumed] == [1, 0, 0]
    assert store.client.xlen(keys.lane(Lane.NORMAL)) == 0


def test_a_worker_with_a_lease_is_not_reaped(hands: Hands, store: Store, keys: Keys) -> None:
    Hands(store, keys, "w-2")
    assert store.run(hands.transitions.find_dead()) == []
    assert not store.run(hands.transitions.mark_dead("w-2", "w-1"))
    assert not hands.renew().is_fenced


def test_only_a_worker_with_a_lease_may_reap(hands: Hands, store: Store) -> None:
    with pytest.raises(FencedError):
        store.run(hands.transitions.mark_dead("nobody", "w-1"))
    with pytest.raises(FencedError):
        store.run(hands.transitions.reap("nobody", "w-1", []))


def test_a_name_that_is_being_reaped_cannot_register(hands: Hands, store: Store, keys: Keys) -> None:
    die(hands)
    second = Hands(store, keys, "w-2")
    store.run(second.transitions.mark_dead("w-2", "w-1"))
    with pytest.raises(FencedError):
        Hands(store, keys, "w-1")


def test_a_holder_without_any_lease_is_found(hands: Hands, store: Store, keys: Keys, server: redis.Redis) -> None:
    hands.submit(submission())
    hands.fetch()
    server.zrem(keys.workers, "w-1")
    assert store.run(hands.transitions.find_dead()) == ["w-1"]


def test_a_request_that_only_ever_kills_is_given_up(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    worker, lane = hands, Lane.NORMAL
    for crash in range(MAX_CRASHES):
        assert worker.begin_next(lane).crashed == crash
        die(worker)
        survivor = Hands(store, keys, f"w-{crash + 2}")
        reap(survivor, worker.worker)
        worker, lane = survivor, Lane.RESUME
    assert worker.fetch(Lane.RESUME) == []
    terminal = hands.entries("q-1")[-1][1]
    assert terminal[b"type"] == b"error"
    assert b"worker_crashed" in terminal[b"error"]
    assert store.client.xlen(keys.dead) == 1


def test_a_request_that_makes_progress_is_never_suspected(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    worker, lane = hands, Lane.NORMAL
    for turn in range(3):
        job = worker.begin_next(lane)
        assert job.crashed == 0
        worker.publish(job, delta(turn, "x", turn))
        die(worker)
        survivor = Hands(store, keys, f"w-{turn + 2}")
        reap(survivor, worker.worker)
        worker, lane = survivor, Lane.RESUME


# --- dead letters ---


def test_burying_twice_leaves_one_letter_and_one_terminal_error(hands: Hands, store: Store, keys: Keys) -> None:
    add_raw(store, keys, body=b"\xff{", id="mine")
    (delivery,) = hands.fetch()
    with pytest.raises(DecodeError):
        delivery.claim()
    assert delivery.request_id == "mine"
    bury = hands.transitions.bury(
        "w-1",
        delivery.lane,
        delivery.entry_id,
        delivery.fields,
        "not UTF-8",
        terminal=failed("invalid", "not UTF-8"),
        request_id="mine",
    )
    assert [store.run(bury), store.run(bury)] == [True, False]
    ((_, letter),) = stream_entries(store, keys.dead)
    assert letter[b"field:body"] == b"\xff{"
    assert [fields[b"type"] for _, fields in hands.entries("mine")] == [b"error"]
    assert store.client.xlen(keys.lane(Lane.NORMAL)) == 0


def test_burying_never_touches_a_request_that_exists(hands: Hands, store: Store, keys: Keys) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    add_raw(store, keys, body=b"{", id="q-1")
    (delivery,) = hands.fetch()
    call = hands.transitions.bury(
        "w-1", delivery.lane, delivery.entry_id, delivery.fields, "no JSON", terminal=failed("x", "y"), request_id="q-1"
    )
    assert store.run(call)
    assert hands.entries("q-1") == []
    assert hands.finish(job, done("")).status == "ok"


# --- statistics ---


def test_statistics_tell_depth_in_flight_age_and_workers(hands: Hands, store: Store) -> None:
    hands.submit(submission("a"))
    hands.fetch()
    hands.submit(submission("b"), submission("c", lane=Lane.BULK))
    look = store.run(hands.transitions.statistics())
    assert (look.depth, look.in_flight, look.lanes["3"].backlog) == (2, 1, 1)
    assert look.oldest_age_s is not None
    (worker,) = look.workers
    assert (worker.name, worker.info["model"]) == ("w-1", "echo")
    assert 0 < worker.lease_left_s <= LEASE_MS / 1000


def test_statistics_of_a_queue_that_nobody_used_are_zero(store: Store, transitions: Transitions) -> None:
    look = store.run(transitions.statistics())
    assert (look.depth, look.in_flight, look.oldest_age_s, look.workers) == (0, 0, None, ())
