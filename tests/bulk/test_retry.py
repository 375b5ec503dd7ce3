"""Which rows a retry tries again: those that failed and are not bad, also after a retry that was killed."""

import json
from pathlib import Path

from tokenmill.bulk.output import errors_of, folder_of
from tokenmill.bulk.retry import begin_retry, end_retry


def error_line(row_hash: str, code: str) -> str:
    return json.dumps({"row_hash": row_hash, "error": {"code": code, "message": "why"}}) + "\n"


def test_bad_rows_and_half_lines_are_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    lines = [error_line("a", "engine_error"), error_line("b", "context_length_exceeded"), error_line("c", "cancelled")]
    bad = json.dumps({"row": 3, "error": {"code": "bad_row", "message": "not JSON"}}) + "\n"
    errors_of(out).write_text("".join([*lines, bad, '{"row_hash": "d", "err']))
    assert begin_retry(out, errors_of(out)) == {"a", "c"}


def test_what_a_killed_retry_did_not_come_to_is_not_forgotten(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    errors_of(out).write_text(error_line("a", "engine_error") + error_line("b", "engine_error"))
    assert begin_retry(out, errors_of(out)) == {"a", "b"}
    errors_of(out).write_text(error_line("b", "engine_error"))  # a run begins with an empty one
    assert begin_retry(out, errors_of(out)) == {"a", "b"}
    end_retry(out)
    assert begin_retry(out, errors_of(out)) == {"b"}
    assert folder_of(out).exists()


def test_a_run_without_errors_has_nothing_to_retry(tmp_path: Path) -> None:
    assert begin_retry(tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl") == frozenset()
