"""Runs as RQ jobs, without a process: handed in once, planned, limited, stopped, found again by a sweep."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from rq.job import Job, JobStatus
from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.jobs.board import RQ_QUEUE, RunBoard, RunConflictError, RunNotFoundError, connect_store
from tokenmill.bulk.jobs.limits import EVERYONE, LimitBook, Limits, seconds_to_midnight
from tokenmill.bulk.jobs.places import PlaceError, local, portable, run_id_of
from tokenmill.bulk.jobs.sweeper import MAX_RETAKEN, Sweeper
from tokenmill.bulk.spec import InputSpec, RunSpec
from tokenmill.wire.errors import InvalidRequestError
from tokenmill.wire.keys import RunKeys
from tokenmill.wire.store import RunTransitions

from tests.support.servers import running_server
from tests.support.waiting import wait_until

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def rq_url() -> Iterator[str]:
    """A server of our own: the jobs of all runs share one RQ queue."""
    with running_server() as server:
        yield server.tcp_url


@pytest.fixture
def board(rq_url: str) -> Iterator[RunBoard]:
    with redis.Redis.from_url(rq_url) as client:
        client.flushall()
    with RunBoard(rq_url) as board:
        yield board


def make_spec(tenant: str | None = None) -> RunSpec:
    return RunSpec(input=InputSpec(paths=("/data/in.jsonl",)), out=f"/data/out-{next(_numbers)}.jsonl", tenant=tenant)


def job_of(board: RunBoard, run_id: str) -> Job:
    return Job.fetch(run_id, connection=board.queue.connection, serializer=board.queue.serializer)


# --- names and places ---


def test_a_run_is_called_after_its_file_in_letters_that_rq_allows() -> None:
    assert run_id_of("/data/My answers, v2.jsonl").startswith("My-answers-v2-")
    assert run_id_of("/a/out.jsonl") != run_id_of("/b/out.jsonl")
    assert run_id_of("/a/💥.jsonl").startswith("run-")


def test_below_a_shared_folder_paths_travel_relative_and_come_out_on_the_other_side(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        (folder / "sub").mkdir(parents=True)
    spec = RunSpec(input=InputSpec(paths=(str(here / "in.jsonl"),)), out=str(here / "sub" / "out.jsonl"))
    sent = portable(spec, here)
    assert (sent.input.paths, sent.out) == (("in.jsonl",), "sub/out.jsonl")
    assert local(sent, there).out == str(there / "sub" / "out.jsonl")


@pytest.mark.parametrize("path", ["../secret.jsonl", "/etc/passwd", "link/x.jsonl", "s3://bucket/x.jsonl", "link/*"])
def test_no_run_leaves_the_shared_folder(tmp_path: Path, path: str) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (tmp_path / "secret.jsonl").write_text("{}")
    (files / "link").symlink_to(tmp_path)
    spec = make_spec()
    for bad in (replace(spec, input=InputSpec(paths=(path,)), out="out.jsonl"), replace(spec, out=path)):
        with pytest.raises(PlaceError):
            local(bad, files)


def test_a_glob_may_not_lead_out_of_the_shared_folder_by_a_link(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (tmp_path / "secret.jsonl").write_text("{}")
    (files / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    spec = RunSpec(input=InputSpec(paths=("*.jsonl",)), out="out.jsonl")
    with pytest.raises(PlaceError, match="leaves --files"):
        local(spec, files)


def test_a_folder_may_not_lead_out_by_a_link_in_it_and_stdin_stays_here(tmp_path: Path) -> None:
    files = tmp_path / "files"
    (files / "rows").mkdir(parents=True)
    (tmp_path / "secret.jsonl").write_text("{}")
    (files / "rows" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(PlaceError, match="leaves --files"):
        local(RunSpec(input=InputSpec(paths=("rows",)), out="out.jsonl"), files)
    with pytest.raises(PlaceError, match="write it to a file that they see"):
        portable(RunSpec(input=InputSpec(paths=("-",)), out="out.jsonl"), None)


def test_a_relative_path_needs_the_folder_it_is_relative_to() -> None:
    with pytest.raises(PlaceError, match="start this bulk worker with --files"):
        local(replace(make_spec(), out="out.jsonl"), None)


# --- handed in ---


def test_a_run_is_one_job_with_an_id_of_its_own_as_json_without_a_time_limit(board: RunBoard) -> None:
    spec = make_spec()
    run_id, is_new = board.submit(spec)
    assert is_new
    job = job_of(board, run_id)
    assert (job.origin, job.timeout, job.get_status()) == (RQ_QUEUE, -1, JobStatus.QUEUED)
    assert board.queue.get_job_ids() == [run_id]
    raw = board.queue.connection.hget(job.key, "data")
    assert isinstance(raw, bytes)
    assert b"RunSpec" not in raw, "no pickle"
    assert RunSpec.from_json(job.args[0]) == spec


def test_the_same_run_again_while_it_is_on_its_way_is_the_same_run(board: RunBoard) -> None:
    spec = make_spec()
    first = board.submit(spec)
    assert board.submit(spec) == (first.run_id, False)
    assert board.queue.get_job_ids() == [first.run_id]


def test_another_run_onto_a_file_that_is_being_written_is_refused(board: RunBoard) -> None:
    spec = make_spec()
    board.submit(spec)
    with pytest.raises(RunConflictError, match="with other settings"):
        board.submit(replace(spec, recipe=Recipe(column="question")))


def test_a_planned_run_waits_for_its_time_and_a_sweep_queues_it(board: RunBoard, rq_url: str) -> None:
    later, soon = make_spec(), make_spec()
    board.submit(later, at=datetime.now(UTC) + timedelta(hours=1))
    board.submit(soon, at=datetime.now(UTC) - timedelta(seconds=1))
    assert board.status(run_id_of(later.out)).state == "scheduled"
    assert board.status(run_id_of(later.out)).due is not None
    sweeper_on(board).sweep()
    assert board.queue.get_job_ids() == [run_id_of(soon.out)]


def test_rq_on_a_cluster_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidRequestError, match="--rq-redis"):
        connect_store("redis+cluster://localhost:7000")


# --- tenants ---


def test_a_tenant_has_as_many_runs_at_once_as_it_may(board: RunBoard) -> None:
    board.limits.set_limits("a", Limits(runs=1))
    first, second, other = make_spec("a"), make_spec("a"), make_spec("b")
    for spec in (first, second, other):
        board.submit(spec)
    assert board.queue.get_job_ids() == [run_id_of(first.out), run_id_of(other.out)]
    assert board.status(run_id_of(second.out)).state == "waiting"
    assert len(board.all_runs()) == 3
    board.stop(run_id_of(first.out))
    assert board.status(run_id_of(second.out)).state == "queued"


def test_limits_of_everyone_hold_for_whom_has_none_of_its_own(board: RunBoard) -> None:
    board.limits.set_limits(EVERYONE, Limits(rows_per_day=10))
    board.limits.set_limits("a", Limits(tokens_per_day=5))
    assert board.limits.limits_of(None) == Limits(rows_per_day=10)
    assert board.limits.limits_of("a") == Limits(tokens_per_day=5)
    board.limits.set_limits("a", None)
    assert board.limits.limits_of("a") == Limits(rows_per_day=10)


def test_what_a_tenant_used_today_is_counted_and_forgotten_in_days(board: RunBoard) -> None:
    book: LimitBook = board.limits
    book.use("a", rows=2, tokens=30)
    usage = book.use("a", rows=1, tokens=4)
    assert (usage.rows, usage.tokens) == (3, 34)
    assert usage.reached(Limits(rows_per_day=4, tokens_per_day=35)) is None
    assert usage.reached(Limits(rows_per_day=3)) == "3 of 3 rows today"
    assert usage.reached(Limits(tokens_per_day=34)) == "34 of 34 tokens today"
    (key,) = board.store.client.scan_iter(match=RunKeys().usage("a", "*"))
    assert board.store.client.ttl(key) > 0
    assert 0 < seconds_to_midnight() <= 86_401


# --- stopped, resumed ---


def test_a_stopped_run_that_waited_never_begins_and_can_be_resumed(board: RunBoard) -> None:
    run_id, _ = board.submit(make_spec())
    assert board.stop(run_id)
    assert board.status(run_id).state == "stopped"
    assert not board.stop(run_id), "it is over already"
    assert board.queue.get_job_ids() == []
    board.resume(run_id)
    assert board.status(run_id).state == "queued"
    assert not board.store.run(RunTransitions().inspect(run_id)).is_stop_wanted
    with pytest.raises(RunConflictError, match="nothing to resume"):
        board.resume(run_id)


def test_runs_are_found_by_id_and_by_their_file(board: RunBoard, tmp_path: Path) -> None:
    spec = make_spec()
    run_id, _ = board.submit(spec)
    assert board.id_of(run_id) == board.id_of(spec.out) == run_id
    below, _ = board.submit(portable(replace(spec, out=str(tmp_path / "x.jsonl"), input=InputSpec(paths=())), tmp_path))
    assert board.id_of(str(tmp_path / "x.jsonl"), tmp_path) == below
    with pytest.raises(RunNotFoundError, match="lists those"):
        board.id_of("nowhere.jsonl")


# --- swept ---


def sweeper_on(board: RunBoard, ttl_ms: int = 1, *, cancelled: list[Job] | None = None) -> Sweeper:
    cancelled = [] if cancelled is None else cancelled
    return Sweeper(board.queue, board.store, RunTransitions(ttl_ms=ttl_ms), cancelled.append)


def begin_and_die(board: RunBoard, run_id: str) -> None:
    """What a worker leaves that is killed in the middle of a run."""
    board.queue.connection.lrem(board.queue.key, 0, run_id)
    job = job_of(board, run_id)
    with board.queue.connection.pipeline() as pipeline:
        job.prepare_for_execution("dead worker", pipeline)
        pipeline.execute()
    runs = RunTransitions(ttl_ms=1)
    board.store.run(runs.acquire(run_id, f"dead execution {next(_numbers)}"))
    wait_until(lambda: board.store.run(runs.find_lapsed()) == [run_id], description="the lease has run out")


def test_a_run_whose_worker_died_is_lost_and_then_queued_first(board: RunBoard) -> None:
    run_id, _ = board.submit(make_spec())
    begin_and_die(board, run_id)
    other, _ = board.submit(make_spec())
    assert board.status(run_id).state == "lost"
    sweeper_on(board).sweep()
    sweeper_on(board).sweep()
    assert board.queue.get_job_ids() == [run_id, other]
    assert board.status(run_id).state == "queued"


def test_a_run_that_kills_its_workers_again_and_again_fails(board: RunBoard) -> None:
    run_id, _ = board.submit(make_spec())
    for _ in range(MAX_RETAKEN + 1):
        begin_and_die(board, run_id)
        sweeper_on(board).sweep()
    status = board.status(run_id)
    assert status.state == "failed"
    assert status.error is not None
    assert "workers died" in status.error
    board.resume(run_id)
    begin_and_die(board, run_id)
    sweeper_on(board).sweep()
    assert board.status(run_id).state == "queued", "resumed, it starts with a clean record"


def test_a_dead_run_that_shall_stop_is_stopped_and_frees_its_tenants_place(board: RunBoard) -> None:
    board.limits.set_limits("a", Limits(runs=1))
    run_id, _ = board.submit(make_spec("a"))
    waiting, _ = board.submit(make_spec("a"))
    begin_and_die(board, run_id)
    board.stop(run_id)
    cancelled: list[Job] = []
    sweeper_on(board, cancelled=cancelled).sweep()
    assert board.status(run_id).state == "stopped"
    assert [job.id for job in cancelled] == [run_id], "what the dead worker had in flight"
    assert board.queue.get_job_ids() == [waiting]


def test_a_job_taken_by_a_worker_that_never_began_it_comes_back(board: RunBoard) -> None:
    run_id, _ = board.submit(make_spec())
    queue = board.queue
    queue.connection.lmove(queue.key, queue.intermediate_queue_key)
    sweeper = sweeper_on(board)

    def is_back() -> bool:
        sweeper.sweep()
        return queue.get_job_ids() == [run_id]

    wait_until(is_back, description="the job is queued again")
    assert queue.intermediate_queue.get_job_ids() == []


def test_limits_are_kept_as_json_for_whoever_looks(board: RunBoard) -> None:
    board.limits.set_limits("a", Limits(runs=2))
    raw = board.store.client.hget(RunKeys().limits, "a")
    assert isinstance(raw, bytes)
    assert json.loads(raw) == {"runs": 2, "rows_per_day": None, "tokens_per_day": None}
    assert board.limits.all_limits() == {"a": Limits(runs=2)}
