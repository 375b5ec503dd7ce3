"""Telling what was generated: what is told once, is told no more when it is repeated."""

import pytest
import redis
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.store import Finish, Publication, Store, Transitions

from tests.support.hands import (
    Hands,
    delta,
    done,
    submission,
)


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
    far = job._replace(epoch=1_000_003)
    hands.publish(far, delta(4_294_967_290, "abc", 1, 2, 3))
    hands.finish(far, done("abc"))
    told = 1_000_003 << 32 | 4_294_967_293
    assert [entry_id for entry_id, _ in hands.entries("q-1")] == [f"{told}-0", f"{told}-1"]


def test_finishing_twice_writes_one_terminal_entry(hands: Hands) -> None:
    hands.submit(submission())
    job = hands.begin_next()
    assert [hands.finish(job, done("a", 1), delta(0, "a", 1)).status for _ in range(2)] == ["ok", "ok"]
    assert [fields[b"type"] for _, fields in hands.entries("q-1")] == [b"delta", b"done"]


def test_a_finish_that_met_a_broken_index_is_done_again(hands: Hands, server: redis.Redis, keys: Keys) -> None:
    hands.submit(submission(deadline_s=60))
    job = hands.begin_next()
    server.delete(keys.deadlines)
    server.set(keys.deadlines, "a string")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        hands.finish(job, done("a", 1), delta(0, "a", 1))
    server.delete(keys.deadlines)
    assert hands.finish(job, done("a", 1), delta(0, "a", 1)).status == "ok"
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
    for writer, its_job in (("w-1", job._replace(fence=job.fence - 1)), ("w-2", job), ("w-1", job._replace(epoch=1))):
        hands.worker = writer
        assert hands.publish(its_job, delta(0, "a", 1)).status == "fenced"
        assert hands.finish(its_job, done("")).status == "fenced"
        assert hands.release(its_job._replace(fence=0)) == 0
    assert hands.entries("q-1") == []


def test_one_call_serves_many_jobs_each_on_its_own(hands: Hands, transitions: Transitions, store: Store) -> None:
    hands.submit(*(submission(f"q-{i}") for i in range(3)))
    jobs = hands.begin(*(delivery.claim() for delivery in hands.fetch()))
    stale = jobs[1]._replace(fence=9)
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
