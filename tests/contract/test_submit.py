"""Accepting requests: once, within the lane's depth, now or later."""

from dataclasses import replace

import pytest
import redis
from tokenmill.wire.keys import MAX_JOBS_PER_CALL, Keys, Lane
from tokenmill.wire.messages import Request
from tokenmill.wire.store import Store, Transitions

from tests.support.hands import (
    Hands,
    delta,
    done,
    submission,
)
from tests.support.waiting import wait_until


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
