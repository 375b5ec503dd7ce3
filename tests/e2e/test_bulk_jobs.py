"""Runs that bulk workers execute, as users type them: whole processes, killed, stopped, handed over, two at once."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from rq.command import send_stop_job_command
from tokenmill import Client
from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.jobs.board import RunBoard
from tokenmill.bulk.jobs.limits import Limits
from tokenmill.bulk.jobs.places import run_id_of
from tokenmill.bulk.spec import InputSpec, RunSpec

from tests.e2e.commands import environment, num_lines, started, tokenmill, tokenmill_here
from tests.support.servers import running_server
from tests.support.waiting import wait_until

OPTIONS = ("--column", "question", "--max-tokens", 8, "--temperature", 0)
LEASE = "1s"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server with a worker on it, 4 rows at once, 10 ms a step: 50 rows a second."""
    with (
        running_server() as server,
        started("worker", "--model", "echo?step_ms=10", "--max-num-seqs", 4, "--redis", server.tcp_url),
    ):
        with Client(server.tcp_url) as client:
            wait_until(lambda: client.statistics().workers, description="the worker is registered")
        yield server.tcp_url


@pytest.fixture
def board(url: str) -> Iterator[RunBoard]:
    with RunBoard(url) as board:
        yield board


def write_questions(folder: Path, num_rows: int) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": f"question {n}"}) + "\n" for n in range(num_rows)))
    return path


@contextmanager
def bulk_workers(url: str, number: int, *options: object) -> Iterator[list["subprocess.Popen[str]"]]:
    with ExitStack() as stack:
        command = ("bulk", "worker", "--redis", url, "--lease", LEASE, *options)
        yield [stack.enter_context(started(*command)) for _ in range(number)]


def hand_in(board: RunBoard, questions: Path, *, window: int | None = None, tenant: str | None = None) -> str:
    """As `bulk submit` does, without a process."""
    spec = RunSpec(
        input=InputSpec(paths=(str(questions),)),
        out=str(questions.with_name("out.jsonl")),
        recipe=Recipe(column="question", sampling={"max_tokens": 8, "temperature": 0.0}),
        window=window,
        tenant=tenant,
    )
    return board.submit(spec).run_id


def submit(questions: Path, url: str, *more: object) -> str:
    out = questions.with_name("out.jsonl")
    report = tokenmill("bulk", "submit", questions, "--out", out, *OPTIONS, "--redis", url, *more)
    assert report.returncode == 0, report.stderr
    return report.stdout.strip()


def wait_ended(board: RunBoard, run_id: str) -> None:
    wait_until(lambda: board.status(run_id).is_final, description=f"{run_id} has ended", timeout=30)


def undisturbed(url: str, questions: Path) -> bytes:
    out = questions.with_name("undisturbed.jsonl")
    report = tokenmill_here("bulk", "run", questions, "--out", out, *OPTIONS, "--redis", url)
    assert report.returncode == 0, report.stderr
    return out.read_bytes()


def running_worker(board: RunBoard, run_id: str, workers: list["subprocess.Popen[str]"]) -> "subprocess.Popen[str]":
    """Its name tells its process."""
    name = board.status(run_id).worker or ""
    return next(worker for worker in workers if f"-{worker.pid}-" in name)


def test_a_run_is_submitted_watched_exported_and_seen_by_rq(url: str, tmp_path: Path) -> None:
    questions = write_questions(tmp_path, 30)
    questions.write_text(questions.read_text() + "{oops\n")
    with bulk_workers(url, 1):
        run_id = submit(questions, url)
        watched = tokenmill("bulk", "watch", run_id, "--redis", url)
    assert watched.returncode == 1, "one row is bad, as `bulk run` would say"
    assert "31/31 rows" in watched.stdout
    status = tokenmill_here("bulk", "status", tmp_path / "out.jsonl", "--redis", url, "--json")
    told = json.loads(status.stdout)
    assert (told["state"], told["report"]["num_done"], told["report"]["num_failed"]) == ("done", 30, 1)
    assert run_id in tokenmill_here("bulk", "status", "--redis", url).stdout
    info = subprocess.run(
        [sys.executable, "-m", "rq.cli", "info", "--url", url, "--raw"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "queue tokenmill-bulk 0, 0 executing, 1 finished, 0 failed" in info.stdout


def test_a_killed_bulk_worker_is_followed_by_another_and_the_file_is_the_same(
    url: str, board: RunBoard, tmp_path: Path
) -> None:
    questions, out = write_questions(tmp_path, 40), tmp_path / "out.jsonl"
    with bulk_workers(url, 2) as workers:
        run_id = hand_in(board, questions)
        wait_until(lambda: num_lines(out) >= 10, description="some rows are written", timeout=30)
        killed = running_worker(board, run_id, workers)
        killed.kill()
        wait_until(
            lambda: board.status(run_id).worker not in (None, ""),
            description="the run is somebody's again",
            timeout=30,
        )
        wait_ended(board, run_id)
    status = board.status(run_id)
    assert (status.state, status.num_failed) == ("done", 0)
    assert status.report is not None
    assert status.report["num_skipped"], "what the killed one had written was not done again"
    assert out.read_bytes() == undisturbed(url, questions)


def test_a_stopped_run_keeps_its_rows_and_is_resumed(url: str, board: RunBoard, tmp_path: Path) -> None:
    questions, out = write_questions(tmp_path, 60), tmp_path / "out.jsonl"
    with bulk_workers(url, 1):
        run_id = hand_in(board, questions, window=8)
        wait_until(lambda: num_lines(out) >= 10, description="some rows are written", timeout=30)
        assert board.stop(run_id)
        wait_ended(board, run_id)
        assert board.status(run_id).state == "stopped"
        num_kept = num_lines(out)
        assert num_kept < 60
        with Client(url) as client:
            wait_until(lambda: client.statistics().in_flight == 0, description="what was in flight is cancelled")
            assert client.statistics().depth == 0
        board.resume(run_id)
        wait_ended(board, run_id)
    report = board.status(run_id).report or {}
    assert (report["num_skipped"], report["num_done"]) == (num_kept, 60 - num_kept)
    assert num_lines(out) == 60


@pytest.mark.slow
def test_rqs_own_stop_command_stops_a_run(url: str, board: RunBoard, tmp_path: Path) -> None:
    questions, out = write_questions(tmp_path, 100), tmp_path / "out.jsonl"
    with bulk_workers(url, 1):
        run_id = hand_in(board, questions, window=8)
        wait_until(lambda: num_lines(out) >= 1, description="the run has begun", timeout=30)
        send_stop_job_command(board.queue.connection, run_id, serializer=board.queue.serializer)
        wait_ended(board, run_id)
    assert board.status(run_id).state == "stopped"
    assert tokenmill_here("bulk", "resume", run_id, "--redis", url).stdout.strip() == run_id
    assert tokenmill_here("bulk", "stop", out, "--redis", url).stdout.strip() == f"{run_id} stops"
    assert num_lines(out) < 100


@pytest.mark.slow
def test_a_terminated_bulk_worker_hands_its_run_back_at_once(url: str, board: RunBoard, tmp_path: Path) -> None:
    questions, out = write_questions(tmp_path, 40), tmp_path / "out.jsonl"
    with bulk_workers(url, 1) as (leaving,):
        run_id = hand_in(board, questions)
        wait_until(lambda: num_lines(out) >= 5, description="some rows are written", timeout=30)
        leaving.send_signal(signal.SIGTERM)
        assert leaving.wait(30) == 0
    assert board.status(run_id).state == "queued"
    with bulk_workers(url, 1):
        wait_ended(board, run_id)
    assert board.status(run_id).state == "done"
    assert out.read_bytes() == undisturbed(url, questions)


def test_of_two_bulk_workers_with_the_same_job_one_writes(url: str, board: RunBoard, tmp_path: Path) -> None:
    questions, out = write_questions(tmp_path, 40), tmp_path / "out.jsonl"
    run_id = hand_in(board, questions)
    for _ in range(3):
        board.queue.push_job_id(run_id)
    with bulk_workers(url, 2):
        wait_ended(board, run_id)
        wait_until(lambda: not board.queue.get_job_ids(), description="the other entries are dropped")
    assert board.status(run_id).state == "done"
    assert num_lines(out) == len({json.loads(line)["row_hash"] for line in out.read_bytes().splitlines()}) == 40


@pytest.mark.slow
def test_a_bulk_worker_that_was_frozen_past_its_lease_writes_nothing_more(
    url: str, board: RunBoard, tmp_path: Path
) -> None:
    questions, out = write_questions(tmp_path, 60), tmp_path / "out.jsonl"
    with bulk_workers(url, 2) as workers:
        run_id = hand_in(board, questions)
        wait_until(lambda: num_lines(out) >= 5, description="some rows are written", timeout=30)
        frozen = running_worker(board, run_id, workers)
        frozen.send_signal(signal.SIGSTOP)
        wait_until(
            lambda: "is being written by another run" in (board.status(run_id).error or ""),
            description="the other worker has the run, and the frozen one the file",
            timeout=30,
        )
        num_written = num_lines(out)
        frozen.send_signal(signal.SIGCONT)
        wait_ended(board, run_id)
        assert frozen.poll() is None, "it goes on as a worker"
    report = board.status(run_id).report or {}
    assert report["num_skipped"] == num_written
    assert out.read_bytes() == undisturbed(url, questions)


@pytest.mark.slow
def test_a_server_that_lost_everything_is_given_the_run_again(tmp_path: Path) -> None:
    questions, out = write_questions(tmp_path, 100), tmp_path / "out.jsonl"
    with running_server() as server, RunBoard(server.tcp_url) as board, bulk_workers(server.tcp_url, 1):
        with started("worker", "--model", "echo?step_ms=10", "--max-num-seqs", 4, "--redis", server.tcp_url):
            run_id = hand_in(board, questions)
            wait_until(lambda: num_lines(out) >= 5, description="some rows are written", timeout=30)
            board.queue.connection.flushall()
            wait_until(lambda: not board.all_runs(), description="nobody knows the run any more")
            assert hand_in(board, questions) == run_id
            wait_ended(board, run_id)
        status = board.status(run_id)
    assert (status.state, status.num_failed) == ("done", 0)
    assert num_lines(out) == 100


@pytest.mark.slow
def test_with_the_usual_lease_a_killed_workers_run_is_taken_within_half_a_minute(
    url: str, board: RunBoard, tmp_path: Path
) -> None:
    questions, out = write_questions(tmp_path, 300), tmp_path / "out.jsonl"
    with started("bulk", "worker", "--redis", url) as killed:
        run_id = hand_in(board, questions)
        wait_until(lambda: num_lines(out) >= 5, description="some rows are written", timeout=30)
        killed.kill()
        killed.wait()
    num_written = num_lines(out)
    with started("bulk", "worker", "--redis", url):
        wait_until(lambda: num_lines(out) > num_written, description="another worker goes on", timeout=30)
        wait_ended(board, run_id)
    assert num_lines(out) == 300


@pytest.mark.slow
def test_a_file_that_the_worker_cannot_read_is_named_in_the_status(url: str, board: RunBoard, tmp_path: Path) -> None:
    questions = write_questions(tmp_path, 2)
    shared = tmp_path / "shared"
    shared.mkdir()
    run_id = hand_in(board, questions)
    with bulk_workers(url, 1, "--files", shared):
        wait_ended(board, run_id)
    status = board.status(run_id)
    assert status.state == "failed"
    assert status.error is not None
    assert "this bulk worker touches nothing else" in status.error
    told = tokenmill_here("bulk", "status", run_id, "--redis", url).stdout
    assert "touches nothing else" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_files_are_shared_under_other_names(url: str, board: RunBoard, tmp_path: Path) -> None:
    questions = write_questions(tmp_path, 5)
    other_name = tmp_path.with_name(tmp_path.name + "-seen-elsewhere")
    other_name.symlink_to(tmp_path)
    run_id = submit(questions, url, "--files", tmp_path)
    assert run_id == run_id_of("out.jsonl")
    with bulk_workers(url, 1, "--files", other_name):
        wait_ended(board, run_id)
    assert board.status(run_id).state == "done"
    assert num_lines(tmp_path / "out.jsonl") == 5


@pytest.mark.slow
def test_a_tenant_that_used_up_its_day_goes_on_tomorrow(url: str, board: RunBoard, tmp_path: Path) -> None:
    questions, out = write_questions(tmp_path, 200), tmp_path / "out.jsonl"
    board.limits.set_limits("frugal", Limits(rows_per_day=10))
    with bulk_workers(url, 1):
        run_id = hand_in(board, questions, tenant="frugal", window=8)
        wait_until(lambda: board.status(run_id).state == "scheduled", description="the run pauses", timeout=30)
    assert "of 10 rows today: goes on at 0:00 UTC" in (board.status(run_id).note or "")
    assert 10 <= num_lines(out) < 200


def forget_two_rows(out: Path) -> None:
    """As if the last two rows had not been done, the first of them because the engine failed on it."""
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:-2]))
    failed = {"row_hash": json.loads(lines[-2])["row_hash"], "error": {"code": "engine_error", "message": "!"}}
    out.with_name("out.errors.jsonl").write_text(json.dumps(failed) + "\n")


def test_failed_rows_of_a_run_of_this_machine_are_tried_again_and_no_others(url: str, tmp_path: Path) -> None:
    questions, out = write_questions(tmp_path, 6), tmp_path / "out.jsonl"
    assert tokenmill_here("bulk", "run", questions, "--out", out, *OPTIONS, "--redis", url).returncode == 0
    forget_two_rows(out)
    retried = tokenmill_here("bulk", "retry-failed", out, "--redis", url, "--json")
    assert retried.returncode == 0, retried.stderr
    assert json.loads(retried.stdout)["num_done"] == 1
    assert num_lines(out) == 5
    assert not out.with_name("out.errors.jsonl").exists()


@pytest.mark.slow
def test_failed_rows_of_a_queued_run_are_tried_again_and_no_others(url: str, board: RunBoard, tmp_path: Path) -> None:
    questions, out = write_questions(tmp_path, 6), tmp_path / "out.jsonl"
    with bulk_workers(url, 1):
        run_id = hand_in(board, questions)
        wait_ended(board, run_id)
        forget_two_rows(out)
        assert tokenmill_here("bulk", "retry-failed", out, "--redis", url).stdout.strip() == run_id
        wait_ended(board, run_id)
        assert num_lines(out) == 5
        board.resume(run_id)
        wait_ended(board, run_id)
    assert num_lines(out) == 6


def test_finished_rows_are_exported_in_any_format_while_the_run_goes_on(url: str, tmp_path: Path) -> None:
    questions, out = write_questions(tmp_path, 3), tmp_path / "out.jsonl"
    assert tokenmill_here("bulk", "run", questions, "--out", out, *OPTIONS, "--redis", url).returncode == 0
    whole = out.read_bytes()
    out.write_bytes(whole + b'{"row_ha')
    for name in ("so-far.jsonl", "so-far.csv"):
        exported = tokenmill_here("bulk", "export", out, "--to", tmp_path / name)
        assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "so-far.jsonl").read_bytes() == whole
    assert "question 2" in (tmp_path / "so-far.csv").read_text()
    assert tokenmill_here("bulk", "export", out, "--to", "-").stdout.encode() == whole


@pytest.mark.slow
def test_limits_are_set_shown_and_cleared(url: str) -> None:
    tokenmill_here("bulk", "limits", "team", "--runs", 2, "--redis", url)
    shown = tokenmill_here("bulk", "limits", "team", "--rows-per-day", 1_000, "--redis", url).stdout
    assert shown == "team: runs 2, rows 0 of 1,000 today, tokens 0 of any today\n"
    assert "runs any" in tokenmill_here("bulk", "limits", "team", "--clear", "--redis", url).stdout
    assert tokenmill_here("bulk", "limits", "--runs", 2, "--redis", url).returncode == 2
