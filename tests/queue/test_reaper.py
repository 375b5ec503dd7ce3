"""Who may be declared dead, and what becomes of what the dead held."""

import pytest
from tokenmill.wire.errors import FencedError
from tokenmill.wire.keys import GROUP, Lane
from tokenmill_worker.queue.reaper import GOOD_RENEWALS, Reaper

from tests.queue.harness import Bench
from tests.support.waiting import wait_until

TTL_S = 0.0  # every server is older than twice that


def stopped_clock() -> float:
    """Nothing is late by it."""
    return 0.0


@pytest.fixture
def reaper(bench: Bench) -> Reaper:
    """Of a live worker `me` that renewed itself often enough."""
    bench.store.run(bench.transitions.register("me", {}, 60_000))
    trusted = Reaper(bench.store, bench.transitions, ttl_s=TTL_S, now_s=stopped_clock)
    for _ in range(GOOD_RENEWALS):
        trusted.trust()
    return trusted


@pytest.fixture
def dead(bench: Bench) -> str:
    """A worker whose lease has just run out."""
    bench.store.run(bench.transitions.register("dead", {}, 0))
    return "dead"


def read_by(bench: Bench, worker: str) -> None:
    bench.server.xreadgroup(GROUP, worker, {bench.keys.lane(Lane.NORMAL): ">"})


def resumed(bench: Bench) -> list[str]:
    return [fields[b"id"].decode() for _, fields in bench.server.xrange(bench.keys.lane(Lane.RESUME))]


def test_a_worker_whose_lease_ran_out_is_taken_over(bench: Bench, reaper: Reaper, dead: str) -> None:
    bench.submit("q-1")
    read_by(bench, dead)
    reaper.reap_one("me")
    assert resumed(bench) == ["q-1"]
    assert bench.workers() == ["me"]
    assert reaper.num_reaped == 1


def test_a_live_worker_is_left_alone(bench: Bench, reaper: Reaper) -> None:
    bench.store.run(bench.transitions.register("live", {}, 60_000))
    reaper.reap_one("me")
    assert set(bench.workers()) == {"live", "me"}


def test_the_next_look_is_due_when_the_next_lease_ends(bench: Bench, reaper: Reaper, dead: str) -> None:
    bench.store.run(bench.transitions.register("next", {}, 20_000))
    due_s = reaper.next_due_s()  # not `dead`, whose end is past
    assert due_s is not None
    assert 10.0 < due_s <= 20.001


def test_of_several_dead_it_is_told_that_there_are_more(bench: Bench, reaper: Reaper, dead: str) -> None:
    bench.store.run(bench.transitions.register("dead too", {}, 0))
    assert [reaper.reap_one("me") for _ in range(3)] == [True, False, False]
    assert bench.workers() == ["me"]


def test_nobody_is_judged_before_two_renewals_of_ones_own(bench: Bench, dead: str) -> None:
    fresh = Reaper(bench.store, bench.transitions, ttl_s=TTL_S, now_s=stopped_clock)
    fresh.trust()
    fresh.reap_one("me")
    assert dead in bench.workers()


def test_an_outage_makes_the_judge_wait_again(bench: Bench, reaper: Reaper, dead: str) -> None:
    reaper.distrust()
    reaper.reap_one("me")
    assert dead in bench.workers()


def test_who_was_late_himself_does_not_judge_others_until_he_renewed_twice_in_time(bench: Bench, dead: str) -> None:
    """A server that hung, and answers in the end, gives no error; but no lease was renewed meanwhile."""
    bench.store.run(bench.transitions.register("me", {}, 60_000))
    now_s = [0.0]
    late = Reaper(bench.store, bench.transitions, ttl_s=0.3, now_s=lambda: now_s[0])
    wait_until(lambda: bench.server.info("server")["uptime_in_seconds"] >= 1, description="it is no young server")
    for now_s[0], is_judged in ((0.1, False), (0.2, False), (0.5, False), (0.6, True)):
        late.trust()
        if now_s[0] == 0.2:
            now_s[0] = 0.41  # the look itself takes so long
        late.reap_one("me")
        assert (dead not in bench.workers()) is is_judged


def test_nobody_is_judged_on_a_server_that_has_just_started(bench: Bench, dead: str) -> None:
    young = Reaper(bench.store, bench.transitions, ttl_s=100_000.0)
    for _ in range(GOOD_RENEWALS):
        young.trust()
    young.reap_one("me")
    assert dead in bench.workers()


def test_a_takeover_that_its_reaper_did_not_finish_is_finished_by_the_next(
    bench: Bench, reaper: Reaper, dead: str
) -> None:
    bench.submit("q-1")
    read_by(bench, dead)
    bench.store.run(bench.transitions.mark_dead("me", dead))
    reaper.reap_one("me")
    assert resumed(bench) == ["q-1"]
    assert not bench.server.exists(bench.keys.dead_workers)


def test_a_raw_entry_that_was_read_and_never_begun_goes_back_under_the_id_its_producer_waits_for(
    bench: Bench, reaper: Reaper, dead: str
) -> None:
    request_id = bench.add_raw({"prompt": "hi"})
    read_by(bench, dead)
    reaper.reap_one("me")
    assert resumed(bench) == [request_id]


def test_an_entry_of_a_dead_worker_that_is_no_request_is_buried(bench: Bench, reaper: Reaper, dead: str) -> None:
    request_id = bench.add_raw({"body": b"nonsense"})
    bench.submit("q-1")
    read_by(bench, dead)
    reaper.reap_one("me")
    assert bench.terminal(request_id).type == "error"
    assert len(bench.dead_letters()) == 1
    assert resumed(bench) == ["q-1"]
    assert bench.workers() == ["me"]


def test_who_has_no_lease_reaps_nobody(bench: Bench, reaper: Reaper, dead: str) -> None:
    with pytest.raises(FencedError):
        reaper.reap_one("a stranger")


def test_requests_that_wait_beyond_their_deadline_are_swept(bench: Bench, reaper: Reaper) -> None:
    bench.submit("q-1", deadline_s=0.001)

    def is_swept() -> bool:
        reaper.sweep()
        return bench.result("q-1").terminal is not None

    wait_until(is_swept, description="the sweep")
    assert bench.terminal("q-1").type == "expired"
