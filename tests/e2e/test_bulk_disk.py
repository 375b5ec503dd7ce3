"""`tokenmill bulk run` when the output cannot be written: a clear end, and the same command goes on once it can."""

import json
import subprocess
from pathlib import Path

from tests.e2e.commands import TIMEOUT_S, command, environment, num_lines, tokenmill_here

NUM_ROWS = 600
FILE_BYTES = 60_000  # as large as a file may become: a third of the rows; the scratch files stay below it


def test_an_output_that_can_grow_no_further_ends_the_run_and_the_same_command_goes_on(
    served: tuple[str, ...], tmp_path: Path
) -> None:
    questions, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    questions.write_text("".join(json.dumps({"question": f"question {n}"}) + "\n" for n in range(NUM_ROWS)))
    options = ("--column", "question", "--max-tokens", 8, "--temperature", 0, *served)
    arguments = ("bulk", "run", questions, "--out", out, *options)
    limited = subprocess.run(
        ["prlimit", f"--fsize={FILE_BYTES}", *command(*arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert limited.returncode == 1
    assert "File too large" in limited.stderr
    assert "run the same command again" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert 0 < num_lines(out) < NUM_ROWS
    assert out.read_bytes().endswith(b"\n")
    done = tokenmill_here(*arguments)
    assert done.returncode == 0, done.stderr
    assert len({json.loads(line)["row_hash"] for line in out.read_bytes().splitlines()}) == NUM_ROWS


def test_an_output_in_a_folder_that_is_a_file_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    questions = tmp_path / "rows.jsonl"
    questions.write_text('{"prompt": "a"}\n')
    refused = tokenmill_here("bulk", "run", questions, "--out", tmp_path / "file" / "out.jsonl")
    assert refused.returncode == 2
    assert "cannot write" in refused.stderr
