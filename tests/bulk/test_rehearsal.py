"""What a run would do: its prompts, and an estimate from a sample of its rows."""

import json
from pathlib import Path

from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.rehearsal import Preview, estimate, preview, with_tokens
from tokenmill.bulk.report import RunReport
from tokenmill.bulk.spec import InputSpec, RunSpec


def report_of(spec: RunSpec, num_done: int) -> RunReport:
    return RunReport(
        num_rows=num_done,
        num_skipped=0,
        num_done=num_done,
        num_failed=0,
        prompt_tokens=0,
        completion_tokens=10 * num_done,
        finish_reasons={},
        elapsed_s=1.0,
        out=spec.out,
        errors=None,
    )


def answer_all(spec: RunSpec) -> RunReport:
    """In the place of a run: every row gets 10 tokens, its prompt has 3."""
    rows = [json.loads(line) for line in Path(spec.input.paths[0]).read_bytes().splitlines()]
    usage = {"prompt_tokens": 3, "completion_tokens": 10}
    lines = [json.dumps({"custom_id": row.get("custom_id", "x"), "usage": usage}) + "\n" for row in rows]
    Path(spec.out).write_text("".join(lines))
    return report_of(spec, len(rows))


def spec_of(folder: Path, *rows: str) -> RunSpec:
    (folder / "in.jsonl").write_text("".join(row + "\n" for row in rows))
    paths = (str(folder / "in.jsonl"),)
    return RunSpec(input=InputSpec(paths=paths), out=str(folder / "out.jsonl"), recipe=Recipe(column="q"))


def test_a_preview_shows_requests_and_what_has_none(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, '{"q": "a"}', "{oops", '{"r": 1}', '{"q": "d"}')
    good, broken, missing = preview(spec, 3)
    assert good == Preview(1, {"messages": [{"role": "user", "content": "a"}]})
    assert broken.request is None
    assert "not JSON" in str(broken.reason)
    assert "no column 'q'" in str(missing.reason)
    counted = with_tokens(spec, [good, broken, missing], tmp_path, answer_all)
    assert [each.num_tokens for each in counted] == [3, None, None]
    assert not (tmp_path / "out.jsonl.tokenmill").exists()


def test_an_estimate_follows_from_a_sample_and_counts_what_cannot_run(tmp_path: Path) -> None:
    rows = [json.dumps({"q": str(number)}) for number in range(99)]
    value = estimate(spec_of(tmp_path, *rows, "{oops"), tmp_path, answer_all, size=20)
    assert (value.num_rows, value.num_sampled, value.num_bad, value.failing) == (100, 20, 1, 0)
    assert value.prompt_tokens.likely == 3 * 99
    assert value.completion_tokens.low == value.completion_tokens.high == 990
    assert value.seconds.likely == 990 / 200


def test_an_empty_input_takes_no_time(tmp_path: Path) -> None:
    value = estimate(spec_of(tmp_path), tmp_path, answer_all)
    assert (value.num_rows, value.completion_tokens.likely, value.seconds.high) == (0, 0, 0)
