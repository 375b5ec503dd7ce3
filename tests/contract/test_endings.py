"""Cancelled, and beyond the deadline: who waits ends at once, who runs is left to its owner."""

from tests.support.hands import (
    Hands,
    delta,
    done,
    submission,
)
from tests.support.waiting import wait_until


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
