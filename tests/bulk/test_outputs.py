"""A finished run in other forms: Parquet, CSV and OpenAI's files."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.output import OutputError, OutputFile, encode_line
from tokenmill.bulk.outputs import RunRows, out_format_of, paths_of, write_output
from tokenmill.bulk.outputs import source as source_module
from tokenmill.bulk.rows import Fields
from tokenmill.bulk.spec import InputSpec, RunSpec

NAME = "0123456789abcdef" * 2


def done(number: int, /, **columns: Any) -> Fields:
    return {
        "custom_id": f"row-{number}",
        "row_hash": NAME,
        "input": columns,
        "text": f"answer, {number}\n🙂",
        "token_ids": [1, number],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def run_of(folder: Path, *rows: Fields, errors: tuple[Fields, ...] = ()) -> RunRows:
    (folder / "rows.jsonl").write_bytes(b"".join(map(encode_line, rows)))
    (folder / "errors.jsonl").write_bytes(b"".join(map(encode_line, errors)))
    return RunRows(folder / "rows.jsonl", folder / "errors.jsonl", model=None, created=1_795_420_810)


def parquet_of(folder: Path, *rows: Fields) -> list[dict[str, Any]]:
    write_output(run_of(folder, *rows), folder / "out.parquet", "parquet")
    return list(pq.read_table(folder / "out.parquet").to_pylist())


def test_a_parquet_row_is_the_input_row_with_its_completion(tmp_path: Path) -> None:
    (row,) = parquet_of(tmp_path, done(1, question="why?", tags=["a"], meta={"k": 1}))
    assert row == {
        "question": "why?",
        "tags": ["a"],
        "meta": {"k": 1},
        "custom_id": "row-1",
        "row_hash": NAME,
        "completion": "answer, 1\n🙂",
        "token_ids": [1, 1],
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 2,
    }


def test_a_column_has_the_narrowest_type_for_all_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "CHUNK_BYTES", 1)  # every row a chunk of its own
    rows = parquet_of(
        tmp_path,
        done(1, number=1, mixed=1, deep={"a": 1}, empty={}, large=1),
        done(2, number=2.5, mixed="two", deep={"b": None}, empty={}, large=2**70, late=True),
        done(3, number=None, mixed=[3], deep=None, empty={}, large=0),
    )
    assert [row["number"] for row in rows] == [1.0, 2.5, None]
    assert [row["mixed"] for row in rows] == ["1", '"two"', "[3]"]
    assert [row["deep"] for row in rows] == [{"a": 1, "b": None}, {"a": None, "b": None}, None]
    assert [row["empty"] for row in rows] == ["{}"] * 3
    assert [row["large"] for row in rows] == ["1", str(2**70), "0"]
    assert [row["late"] for row in rows] == [None, True, None]
    assert pq.read_schema(tmp_path / "out.parquet").field("token_ids").type == pa.list_(pa.int64())


def test_an_input_column_that_is_called_like_one_of_ours_is_kept_under_another_name(tmp_path: Path) -> None:
    (row,) = parquet_of(tmp_path, done(1, completion="an earlier one", custom_id="row-1", text="kept"))
    assert (row["input.completion"], row["text"]) == ("an earlier one", "kept")
    assert row["completion"].startswith("answer")
    assert "input.custom_id" not in row


def test_csv_has_every_column_of_any_row(tmp_path: Path) -> None:
    run = run_of(tmp_path, done(1, q='"quoted", naïve'), done(2, tags=["a"], ok=True))
    write_output(run, tmp_path / "out.csv", "csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["q"], first["tags"], first["completion"]) == ('"quoted", naïve', "", "answer, 1\n🙂")
    assert (second["q"], second["tags"], second["ok"]) == ("", '["a"]', "true")


def test_an_empty_run_gives_empty_files(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    for out_format in ("csv", "parquet", "openai"):
        write_output(run, tmp_path / f"out.{out_format}", out_format)
        assert (tmp_path / f"out.{out_format}").exists()


def test_half_a_line_at_the_end_is_no_row(tmp_path: Path) -> None:
    run = run_of(tmp_path, done(1))
    run.rows.write_bytes(run.rows.read_bytes() + b'{"half')
    assert len(list(run.done())) == 1


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    run = run_of(tmp_path, done(1))
    write_output(run, tmp_path / "out.csv", "csv")
    before = (tmp_path / "out.csv").read_bytes()
    run.rows.write_bytes(b"no row\n")
    with pytest.raises(ValueError, match="Expecting value"):
        write_output(run, tmp_path / "out.csv", "csv")
    assert (tmp_path / "out.csv").read_bytes() == before
    assert not list(tmp_path.glob(".*.new"))


# --- OpenAI's files ---


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def openai_of(folder: Path, *rows: Fields, errors: tuple[Fields, ...] = ()) -> tuple[Any, Any]:
    write_output(run_of(folder, *rows, errors=errors), folder / "out.jsonl", "openai")
    errors_path = folder / "out.errors.jsonl"
    return lines_of(folder / "out.jsonl"), lines_of(errors_path) if errors_path.exists() else None


def batch_row(number: int, url: str) -> Fields:
    return done(number, custom_id=f"row-{number}", method="POST", url=url, body={"model": "m"})


def test_completions_pass_the_types_of_the_openai_package(tmp_path: Path) -> None:
    (chat, text), errors = openai_of(tmp_path, batch_row(1, "/v1/chat/completions"), batch_row(2, "/v1/completions"))
    assert errors is None
    assert chat.keys() == {"id", "custom_id", "response", "error"}
    assert chat["response"].keys() == {"status_code", "request_id", "body"}
    parsed = ChatCompletion.model_validate(chat["response"]["body"], strict=True)
    assert parsed.choices[0].message.content == "answer, 1\n🙂"
    assert (parsed.model, parsed.created) == ("m", 1_795_420_810)
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == 5
    assert Completion.model_validate(text["response"]["body"], strict=True).choices[0].text == "answer, 2\n🙂"


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    openai_of(tmp_path, batch_row(1, "/v1/completions"), errors=({"row": 2, "error": {"code": "bad_row"}},))
    before = [(tmp_path / name).read_bytes() for name in ("out.jsonl", "out.errors.jsonl")]
    openai_of(tmp_path, batch_row(1, "/v1/completions"), errors=({"row": 2, "error": {"code": "bad_row"}},))
    assert [(tmp_path / name).read_bytes() for name in ("out.jsonl", "out.errors.jsonl")] == before


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("unsupported_field", 400, "invalid_request_error"),
        ("model_not_found", 404, "invalid_request_error"),
        ("engine_error", 500, "server_error"),
    ],
)
def test_a_row_that_was_refused_has_a_response_with_an_error(tmp_path: Path, code: str, status: int, kind: str) -> None:
    error: Fields = {
        "row": 1,
        "custom_id": "a",
        "row_hash": NAME,
        "input": {},
        "error": {"code": code, "message": "no"},
    }
    _, (line,) = openai_of(tmp_path, errors=(error,))
    assert (line["id"], line["custom_id"], line["error"]) == (f"batch_req_{NAME}", "a", None)
    assert line["response"]["status_code"] == status
    assert line["response"]["body"] == {"error": {"message": "no", "type": kind, "param": None, "code": code}}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("bad_row", {"code": "invalid_json_line", "message": "line 4: no"}),
        ("expired", {"code": "batch_expired", "message": "no"}),
        ("cancelled", {"code": "batch_cancelled", "message": "no"}),
    ],
)
def test_a_row_without_a_response_has_an_error(tmp_path: Path, code: str, expected: Fields) -> None:
    error: Fields = {"row": 4, "input": "{oops", "error": {"code": code, "message": "no"}}
    _, (line,) = openai_of(tmp_path, errors=(error,))
    assert (line["custom_id"], line["response"], line["error"]) == (None, None, expected)


def test_an_error_file_of_an_earlier_run_goes_away(tmp_path: Path) -> None:
    openai_of(tmp_path, errors=({"row": 1, "error": {"code": "bad_row", "message": "no"}},))
    assert openai_of(tmp_path, batch_row(1, "/v1/completions"))[1] is None


# --- which form ---


@pytest.mark.parametrize(
    ("out", "out_format", "input_format", "expected"),
    [
        ("out.jsonl", None, None, "jsonl"),
        ("out", None, None, "jsonl"),
        ("out.parquet", None, None, "parquet"),
        ("out.csv", None, "openai", "csv"),
        ("out.jsonl", None, "openai", "openai"),
        ("out.jsonl", "jsonl", "openai", "jsonl"),
        ("out.jsonl", "openai", None, "openai"),
    ],
)
def test_the_form_follows_what_was_said_then_the_name_then_the_input(
    out: str, out_format: str | None, input_format: str | None, expected: str
) -> None:
    spec = RunSpec(input=InputSpec(paths=("in",), format=input_format), out=out, out_format=out_format)
    assert out_format_of(spec) == expected


def test_a_form_that_nobody_knows_is_refused() -> None:
    with pytest.raises(OutputError, match="no output format 'xml'"):
        out_format_of(RunSpec(input=InputSpec(paths=("in",)), out="out.jsonl", out_format="xml"))


def test_the_runs_own_rows_are_never_in_a_file_that_cannot_be_appended() -> None:
    assert paths_of(Path("a/out.jsonl"), "jsonl").rows == Path("a/out.jsonl")
    assert paths_of(Path("a/out.parquet"), "parquet")[:2] == (
        Path("a/out.parquet.tokenmill/rows.jsonl"),
        Path("a/out.errors.jsonl"),
    )
    assert paths_of(Path("a/out.jsonl"), "openai").errors == Path("a/out.jsonl.tokenmill/errors.jsonl")


def test_a_file_that_no_run_wrote_is_not_replaced_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("precious\n")
    paths = paths_of(tmp_path / "out.csv", "csv")
    with pytest.raises(OutputError, match="is there already"):
        OutputFile(paths.out, Recipe(), path=paths.rows, errors_path=paths.errors)
