"""Workloads: lengths as they are written, prompts as they are found."""

import json
import random
from pathlib import Path

import pytest
from tokenmill_worker.engine.echo import EchoTokenizer
from tokenmill_worker.tune.workload import Ask, Lengths, WorkloadError, dataset_workload, random_workload, read_column


def drawn(text: str, num: int = 2_000) -> list[int]:
    rng = random.Random(0)
    return [Lengths.parse(text).draw(rng) for _ in range(num)]


def test_lengths_are_fixed_between_or_around() -> None:
    assert set(drawn("7")) == {7}
    assert set(drawn("3-5")) == {3, 4, 5}
    around = drawn("~122")
    assert sum(around) / len(around) == pytest.approx(122, rel=0.05)
    assert (min(around), max(around)) == (15, 390)


@pytest.mark.parametrize("text", ["", "0", "5-3", "~3-5", "many", "-4", "1.5"])
def test_lengths_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(WorkloadError):
        Lengths.parse(text)


def test_a_seed_makes_the_same_requests_again() -> None:
    one, same, other = (
        random_workload("~20", "~20", vocab_size=256, max_model_len=512, seed=seed).asks() for seed in (1, 1, 2)
    )
    first = [next(one) for _ in range(5)]
    assert [next(same) for _ in range(5)] == first
    assert [next(other) for _ in range(5)] != first


def test_requests_fit_the_model() -> None:
    work = random_workload("100", "100", vocab_size=256, max_model_len=64)
    ask = next(work.asks())
    assert (len(ask.prompt_token_ids), ask.num_output_tokens) == (63, 1)
    assert work.cut(Ask([1, 2], 100)) == Ask([1, 2], 62)


def test_prompts_come_from_json_lines_csv_or_plain_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": 1, "question": "why?"}) + "\n")
    (tmp_path / "a.csv").write_text("id,note\n1,why?\n")
    (tmp_path / "a.txt").write_text("why?\n\n")
    assert read_column(tmp_path / "a.jsonl", None, limit=9) == ["why?"]
    assert read_column(tmp_path / "a.csv", "note", limit=9) == ["why?"]
    assert [text.strip() for text in read_column(tmp_path / "a.txt", None, limit=9)] == ["why?"]


def test_a_dataset_goes_through_the_chat_template(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "why?"}]}) + "\n")
    work = dataset_workload(file, None, "4", EchoTokenizer(), max_model_len=512)
    assert bytes(next(work.asks()).prompt_token_ids).startswith(b"<user>: why?")
    assert work.description == "1 prompts of a.jsonl, answers of 4 tokens"


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ("{", None, "cannot read"),
        ("[1]\n", None, "no object"),
        ('{"a": 1}\n', "b", "it has a"),
        ("", None, "no prompt"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_an_error_that_says_why(
    tmp_path: Path, content: str, column: str | None, message: str
) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(WorkloadError, match=message):
        read_column(tmp_path / "a.jsonl", column, limit=9)
    with pytest.raises(WorkloadError, match="cannot read"):
        read_column(tmp_path / "absent.jsonl", column, limit=9)
