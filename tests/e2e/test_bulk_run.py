"""`tokenmill bulk run`, as a user types it: done once, done again, killed, interrupted, wrong."""

import json
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.commands import descendants, num_lines, started, tokenmill, tokenmill_here
from tests.support.servers import wait_gone
from tests.support.waiting import wait_until

LOCAL = ("--local", "--model", "echo", "--column", "question", "--max-tokens", 8, "--temperature", 0)
SLOW = ("--local", "--model", "echo?step_ms=20", "--column", "question", "--max-tokens", 8, "--temperature", 0)


def write_questions(folder: Path, num_rows: int) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": f"question {n}"}) + "\n" for n in range(num_rows)))
    return path


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def run(questions: Path, options: Sequence[object], *more: object) -> subprocess.CompletedProcess[str]:
    return tokenmill_here("bulk", "run", questions, "--out", questions.with_name("out.jsonl"), *options, *more)


def test_a_local_run_answers_every_row_and_a_second_one_has_nothing_to_do(tmp_path: Path) -> None:
    questions, out = write_questions(tmp_path, 50), tmp_path / "out.jsonl"
    first = tokenmill("bulk", "run", questions, "--out", out, *LOCAL, "--limit", 40)
    assert first.returncode == 0, first.stderr
    rows = lines_of(out)
    assert [row["input"] for row in rows] == [{"question": f"question {n}"} for n in range(40)]
    assert rows[0].keys() == {"custom_id", "row_hash", "input", "text", "token_ids", "finish_reason", "usage"}
    before = out.read_bytes()
    second = run(questions, LOCAL, "--limit", 40)
    assert second.returncode == 0
    assert "already complete: nothing to do" in second.stdout
    assert "worker" not in second.stderr
    assert out.read_bytes() == before


def test_a_local_run_killed_half_way_is_finished_by_the_same_command(tmp_path: Path) -> None:
    questions, out = write_questions(tmp_path, 24), tmp_path / "out.jsonl"
    with started("bulk", "run", questions, "--out", out, *SLOW, "--max-num-seqs", 4) as process:
        wait_until(lambda: num_lines(out) >= 4, description="some rows are written")
        children = descendants(process.pid)
        process.kill()
        process.wait()
    assert len(children) >= 2
    for child in children:
        wait_gone(child)
    num_done = num_lines(out)
    assert num_done < 24
    report = run(questions, SLOW, "--max-num-seqs", 64, "--json")
    assert report.returncode == 0, report.stderr
    counts = json.loads(report.stdout)
    assert (counts["num_skipped"], counts["num_done"]) == (num_done, 24 - num_done)
    undisturbed = tmp_path / "undisturbed.jsonl"
    assert tokenmill_here("bulk", "run", questions, "--out", undisturbed, *SLOW).returncode == 0
    assert out.read_bytes() == undisturbed.read_bytes()


def test_ctrl_c_ends_everything_and_says_how_to_go_on(tmp_path: Path) -> None:
    questions, out = write_questions(tmp_path, 60), tmp_path / "out.jsonl"
    with started("bulk", "run", questions, "--out", out, *SLOW, "--max-num-seqs", 2) as process:
        wait_until(lambda: num_lines(out) >= 4, description="some rows are written")
        children = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again" in stderr
    assert "Traceback" not in stderr
    assert json.loads((tmp_path / "out.jsonl.tokenmill" / "report.json").read_text())["ending"] == "interrupted"
    for child in children:
        wait_gone(child)


def test_a_run_on_a_server_finishes_what_a_killed_one_left_there(served: tuple[str, ...], tmp_path: Path) -> None:
    questions, out = write_questions(tmp_path, 300), tmp_path / "out.jsonl"
    options = ("--column", "question", "--max-tokens", 8, *served, "--window", 50)
    with started("bulk", "run", questions, "--out", out, *options) as process:
        wait_until(lambda: num_lines(out) >= 20, description="some rows are written")
        process.kill()
        process.wait()
    assert run(questions, options).returncode == 0
    assert len({json.dumps(row["input"]) for row in lines_of(out)}) == num_lines(out) == 300


def test_bad_rows_are_listed_and_the_exit_code_says_so(served: tuple[str, ...], tmp_path: Path) -> None:
    questions = write_questions(tmp_path, 3)
    questions.write_text(questions.read_text() + "{oops\n" + '{"other": 1}\n')
    report = run(questions, ("--column", "question", *served))
    assert report.returncode == 1
    assert "2 failed: see" in report.stdout
    errors = lines_of(tmp_path / "out.errors.jsonl")
    assert [error["row"] for error in errors] == [4, 5]
    assert num_lines(tmp_path / "out.jsonl") == 3


def test_rows_that_the_model_refuses_fail_alone(served: tuple[str, ...], tmp_path: Path) -> None:
    questions = write_questions(tmp_path, 2)
    questions.write_text(questions.read_text() + json.dumps({"question": "long " * 150_000}) + "\n")
    report = run(questions, ("--column", "question", *served, "--max-tokens", 4))
    assert report.returncode == 1
    (error,) = lines_of(tmp_path / "out.errors.jsonl")
    assert error["row"] == 3
    assert num_lines(tmp_path / "out.jsonl") == 2


def test_csv_templates_and_messages_go_in(served: tuple[str, ...], tmp_path: Path) -> None:
    server = (*served, "--max-tokens", 4)
    table = tmp_path / "rows.csv"
    table.write_text('id,word\na,"say ""hi"", please"\nb,naïve 🙂\n', encoding="utf-8")
    out = tmp_path / "csv.jsonl"
    report = tokenmill_here("bulk", "run", table, "--out", out, "--template", "Translate: {{ word }}", *server)
    assert report.returncode == 0, report.stderr
    assert [row["custom_id"] for row in lines_of(out)] == ["a", "b"]
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}) + "\n")
    assert tokenmill_here("bulk", "run", chat, "--out", tmp_path / "chat.out.jsonl", *server).returncode == 0


def test_a_worker_that_cannot_start_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    report = run(write_questions(tmp_path, 2), (*LOCAL, "--max-num-seqs", 1_000_000))
    assert report.returncode == 1
    assert "the local worker ended with exit code 2" in report.stderr
    assert "max_num_seqs" in report.stderr
    assert "Traceback" not in report.stderr


def test_other_settings_for_the_same_output_are_refused(served: tuple[str, ...], tmp_path: Path) -> None:
    questions = write_questions(tmp_path, 2)
    options = ("--column", "question", "--max-tokens", 4, *served)
    assert run(questions, options).returncode == 0
    report = run(questions, options, "--seed", 3)
    assert report.returncode == 2
    assert "seed was null, now 3" in report.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--column", "a", "--template", "b"), "exclude each other"),
        (("--dtype", "float32"), "--local"),
        (("--template", "{{ oops"), "template, line 1"),
        (("--template", "@missing.txt"), "missing.txt"),
        (("--limit", "0"), "--limit"),
    ],
)
def test_options_that_cannot_work_are_told_before_anything_starts(
    tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    report = run(write_questions(tmp_path, 1), options)
    assert report.returncode == 2
    assert reason in report.stderr
    assert "Traceback" not in report.stderr


def test_a_missing_input_is_a_usage_error_and_a_missing_server_exits_3(tmp_path: Path) -> None:
    missing = run(tmp_path / "questions.jsonl", ())
    assert missing.returncode == 2
    questions = write_questions(tmp_path, 1)
    unserved = run(questions, ("--column", "question", "--redis", "redis://127.0.0.1:1/0"))
    assert unserved.returncode == 3
    assert "Traceback" not in unserved.stderr
