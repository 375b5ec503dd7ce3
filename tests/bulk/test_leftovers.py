"""What a killed execution left on its queue is found by the run's group: in every lane, partition and state."""

import pytest
from tokenmill.bulk import leftovers
from tokenmill.bulk.leftovers import cancel_leftovers
from tokenmill.bulk.spec import QueueSpec
from tokenmill.wire.keys import Lane, all_keys
from tokenmill.wire.store import Store, Submission

from tests.support.hands import Hands

RUN, OTHER = "run-1", "run-2"
NUM_ROWS = 5


def submission(group: str, number: int) -> Submission:
    fields = {"prompt": "hi", "max_tokens": 2, "group": group, "priority": "bulk"}
    return Submission.build(f"{group}:{number}", fields)


def state_of(hands: Hands, group: str, number: int) -> str | None:
    (state,) = hands.store.send([("HGET", hands.keys.job(f"{group}:{number}"), "state")])
    return state.decode() if isinstance(state, bytes) else None


@pytest.mark.parametrize("num_partitions", [1, 2])
def test_unfinished_requests_of_the_group_are_cancelled_and_no_others(
    store: Store, redis_url: str, queue: str, num_partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "ENTRIES_PER_READ", 2)
    parts = [Hands(store, keys) for keys in all_keys(queue, num_partitions)]
    for hands in parts:
        mine = [name for name in range(NUM_ROWS * num_partitions) if hands.keys.owns(f"{RUN}:{name}")]
        hands.submit(*(submission(RUN, number) for number in mine))
        hands.submit(*(submission(OTHER, number) for number in range(3) if hands.keys.owns(f"{OTHER}:{number}")))
    first, *_ = parts
    begun = first.begin(first.fetch(Lane.BULK)[0].claim())[0]
    spec = QueueSpec(name=queue, partitions=num_partitions)
    assert cancel_leftovers(redis_url, spec, RUN) == NUM_ROWS * num_partitions
    assert store.client.smembers(first.keys.cancels(first.worker)) == {begun.request_id.encode()}
    others = [state_of(hands, OTHER, number) for hands in parts for number in range(3)]
    assert [state for state in others if state] == ["queued"] * 3
    assert cancel_leftovers(redis_url, spec, OTHER) == 3
