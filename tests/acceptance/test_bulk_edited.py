"""The input is edited between two runs: only what is new in it reaches a worker."""

import json
import random
from pathlib import Path

from tests.acceptance.bulk_scene import run_to_the_end, write_rows
from tests.acceptance.fleet import running_fleet
from tests.queue.harness import Bench

NUM_ROWS, NUM_REMOVED, NUM_NEW, NUM_TWICE = 300, 40, 25, 10


def test_only_new_rows_are_generated(bench: Bench, tmp_path: Path) -> None:
    questions = [f"question {number}" for number in range(NUM_ROWS)]
    edited = _edit(questions)
    options = ("--redis", bench.url, "--queue", bench.keys.queue, "--column", "question", "--max-tokens", 4)
    with running_fleet(bench, tmp_path, model="echo", max_num_seqs=64) as fleet:
        fleet.start_ready()
        rows = write_rows(tmp_path / "rows.jsonl", ({"question": text} for text in questions))
        run_to_the_end(rows, tmp_path / "out.jsonl", *options)
        num_before = len(fleet.begun)
        write_rows(rows, ({"question": text} for text in edited))
        run = run_to_the_end(rows, tmp_path / "out.jsonl", *options)
        assert (num_before, len(fleet.begun)) == (NUM_ROWS, NUM_ROWS + NUM_NEW + NUM_TWICE)
    told = [json.loads(line)["input"]["question"] for line in run.out.read_bytes().splitlines()]
    assert told[: len(edited)] == edited
    assert sorted(told[len(edited) :]) == sorted(set(questions) - set(edited))
    assert "the input has changed since the last run" in run.log


def _edit(questions: list[str]) -> list[str]:
    """Some are removed, some inserted, some stand there twice, and all of it is shuffled."""
    rng = random.Random(0)
    kept = rng.sample(questions, NUM_ROWS - NUM_REMOVED)
    edited = [*kept, *kept[:NUM_TWICE], *(f"new question {number}" for number in range(NUM_NEW))]
    rng.shuffle(edited)
    return edited
