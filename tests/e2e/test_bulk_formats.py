"""`tokenmill bulk run` over datasets of other forms, as a user types it: what goes in, and what comes back."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from openai.types import Completion
from openai.types.chat import ChatCompletion

from tests.e2e.commands import tokenmill_here

TURNS = [{"role": "user", "content": "hi"}]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def batch_line(name: str, url: str = "/v1/chat/completions", **body: Any) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": {"model": "gpt-4o-mini", **body}})


def test_parquet_goes_in_and_comes_back_with_completions(served: tuple[str, ...], tmp_path: Path) -> None:
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"question": [f"q {n}" for n in range(20)], "n": range(20)}), source)
    options = ("--out", out, "--column", "question", "--max-tokens", 4, *served)
    first = tokenmill_here("bulk", "run", source, *options)
    assert first.returncode == 0, first.stderr
    assert str(out) in first.stdout
    rows = pq.read_table(out).to_pylist()
    assert [(row["question"], row["n"]) for row in rows] == [(f"q {n}", n) for n in range(20)]
    assert all(row["completion_tokens"] == 4 and row["completion"] for row in rows)
    before = out.read_bytes()
    assert "nothing to do" in tokenmill_here("bulk", "run", source, *options).stdout
    assert out.read_bytes() == before


def test_a_folder_of_several_formats_is_one_dataset(served: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table({"q": ["one"]}), folder / "a.parquet")
    (folder / "b.csv").write_text("q\ntwo\n")
    out = folder / "out.jsonl"
    for _ in range(2):  # the second time, `out` is in the folder, too
        report = tokenmill_here("bulk", "run", folder, "--out", out, "--column", "q", "--max-tokens", 4, *served)
        assert report.returncode == 0, report.stderr
    assert [row["input"] for row in lines_of(out)] == [{"q": "one"}, {"q": "two"}]


def test_an_openai_batch_file_runs_unchanged(tmp_path: Path) -> None:
    """With --local the file's model is taken for ours; the answers say which one it was."""
    batch, out = tmp_path / "batch.jsonl", tmp_path / "output.jsonl"
    lines = [
        batch_line("chat", messages=TURNS, max_tokens=4, temperature=0),
        batch_line("text", "/v1/completions", prompt=["hello"], max_tokens=3, logprobs=1),
        batch_line("two", messages=TURNS, max_tokens=2, n=2, logprobs=True, top_logprobs=1),
        batch_line("tools", messages=TURNS, tools=[{"type": "function"}]),
        batch_line("vectors", "/v1/embeddings", input="hello"),
        batch_line("hot", messages=TURNS, temperature=-1),
        "{oops",
    ]
    batch.write_text("\n".join(lines) + "\n")
    command = ("bulk", "run", batch, "--out", out, "--local", "--model", "echo")
    report = tokenmill_here(*command)
    assert report.returncode == 1, report.stderr
    chat, text, two = lines_of(out)
    assert [line["custom_id"] for line in (chat, text, two)] == ["chat", "text", "two"]
    parsed = ChatCompletion.model_validate(chat["response"]["body"], strict=True)
    assert (parsed.model, parsed.choices[0].finish_reason) == ("echo", "length")
    assert Completion.model_validate(text["response"]["body"], strict=True).usage is not None
    choices = ChatCompletion.model_validate(two["response"]["body"], strict=True).choices
    assert [choice.index for choice in choices] == [0, 1]
    assert all(choice.logprobs is not None and len(choice.logprobs.content or ()) == 2 for choice in choices)
    errors = {line["custom_id"]: line for line in lines_of(tmp_path / "output.errors.jsonl")}
    assert errors.keys() == {"tools", "vectors", "hot", None}
    assert errors["tools"]["response"]["body"]["error"]["code"] == "unsupported_field"
    assert "/v1/embeddings" in errors["vectors"]["response"]["body"]["error"]["message"]
    assert "temperature" in errors["hot"]["response"]["body"]["error"]["message"]
    assert errors[None]["error"]["code"] == "invalid_json_line"
    before = out.read_bytes()
    assert tokenmill_here(*command).returncode == 1
    assert out.read_bytes() == before


def test_rows_may_be_piped_in(served: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ("bulk", "run", "-", "--format", "csv", "--out", out, "--column", "q", "--max-tokens", 4, *served)
    piped = tokenmill_here(*arguments, stdin="q\none\ntwo\n")
    assert piped.returncode == 0, piped.stderr
    assert [row["input"] for row in lines_of(out)] == [{"q": "one"}, {"q": "two"}]
    again = tokenmill_here(*arguments)
    assert (again.returncode, "nothing to do (2 rows" in again.stdout) == (0, True)
    empty = tokenmill_here("bulk", "run", "-", "--out", tmp_path / "none.jsonl", *served)
    assert_usage_error(empty, "pipe rows in")


def assert_usage_error(report: subprocess.CompletedProcess[str], reason: str) -> None:
    assert report.returncode == 2
    assert reason in report.stderr
    assert "Traceback" not in report.stderr


def test_every_kind_of_bad_row_is_listed_with_its_reason_and_the_rest_is_done(
    served: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [
        '{"word": "one", "heat": 0.5}',
        "{oops",
        '["no", "object"]',
        '{"word": "\\ud800"}',
        '{"other": 1}',
        '{"word": null}',
        json.dumps({"word": "long " * 30_000}),
        json.dumps({"word": "x" * 2_000_000}),
        '{"word": "two", "heat": "NaN"}',
        '{"word": "two", "heat": NaN}',
        '{"word": "two", "heat": -3}',
        '{"word": "two", "heat": "warm"}',
        '{"word": "three", "heat": null}',
    ]
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"".join(row.encode() + b"\n" for row in rows) + b'{"word": "\xff"}\n')
    options = ("--template", "Say {{ word.upper() }}", "--params-from", "temperature=heat", "--max-tokens", 4)
    report = tokenmill_here("bulk", "run", source, "--out", out, *options, *served)
    assert report.returncode == 1, report.stderr
    assert [row["input"]["word"] for row in lines_of(out)] == ["one", "three"]
    reasons = {error["row"]: error["error"]["message"] for error in lines_of(tmp_path / "out.errors.jsonl")}
    expected = {
        2: "not JSON",
        3: "must be a JSON object",
        4: "surrogate",
        5: "template: 'word' is undefined",
        6: "template:",
        7: "the prompt has 150026 tokens",
        8: "longer than",
        9: "temperature: input should be a finite number, got nan",
        10: "NaN is not a JSON number",
        11: "temperature: input should be greater than or equal to 0",
        12: "temperature: input should be a valid number",
        14: "not UTF-8",
    }
    assert reasons.keys() == expected.keys()
    for number, reason in expected.items():
        assert reason in reasons[number], (number, reasons[number])


def test_a_preview_counts_tokens_and_a_dry_run_measures(served: tuple[str, ...], tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"q": "hi", "n": 3}\n{"q": "you", "n": 5}\n')
    options = ("--column", "q", "--system", "Be brief.", "--params-from", "max_tokens=n", *served)
    shown = tokenmill_here("bulk", "run", source, *options, "--preview", 2)
    assert shown.returncode == 0, shown.stderr
    assert "system: Be brief.\n  user: hi" in shown.stdout
    assert shown.stdout.count(" tokens\n") == 2
    measured = tokenmill_here("bulk", "run", source, *options, "--dry-run", "--json")
    assert json.loads(measured.stdout)["completion_tokens"]["likely"] == 8
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    assert_usage_error(tokenmill_here("bulk", "run", source, *options), "--out")
