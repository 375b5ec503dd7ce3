"""What a worker is handed from the lanes in one call: in order, up to a count, and nothing twice."""

import pytest
from redis.exceptions import ResponseError
from tokenmill.wire.keys import FETCH_ORDER, GROUP, Lane

from tests.support.hands import Hands, submission


def fetch(hands: Hands, count: int) -> list[str]:
    call = hands.transitions.fetch(hands.worker, count, FETCH_ORDER)
    return [delivery.request_id for delivery in hands.store.run(call)]


def test_lanes_are_emptied_in_order_up_to_a_count_over_all_of_them(hands: Hands) -> None:
    hands.submit(submission("b-1", lane=Lane.BULK), submission("n-1"), submission("n-2"))
    hands.submit(submission("h-1", lane=Lane.HIGH))
    assert fetch(hands, 2) == ["h-1", "n-1"]
    assert fetch(hands, 9) == ["n-2", "b-1"]
    assert fetch(hands, 9) == []


def test_a_delivery_carries_its_lane_and_can_be_begun(hands: Hands) -> None:
    hands.submit(submission("h-1", lane=Lane.HIGH))
    (delivery,) = hands.store.run(hands.transitions.fetch(hands.worker, 1, FETCH_ORDER))
    (reply,) = hands.begin(delivery.claim())
    assert (delivery.lane, reply.status) == (Lane.HIGH, "begun")


def test_a_lost_group_is_an_error_but_never_hides_what_was_handed_out(hands: Hands) -> None:
    hands.submit(submission("h-1", lane=Lane.HIGH), submission("n-1"))
    hands.store.client.xgroup_destroy(hands.keys.lane(Lane.NORMAL), GROUP)
    assert fetch(hands, 9) == ["h-1"]
    with pytest.raises(ResponseError, match="NOGROUP"):
        fetch(hands, 9)
