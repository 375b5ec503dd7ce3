"""What a queue tells about itself."""

from tokenmill.wire.keys import Lane
from tokenmill.wire.store import Store, Transitions

from tests.support.hands import (
    LEASE_MS,
    Hands,
    submission,
)


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
