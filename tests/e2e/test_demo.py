"""`tokenmill demo` with the echo model: the whole way through, on a pipe."""

import re
import signal

from tests.e2e.commands import descendants, started, tokenmill
from tests.support.servers import wait_gone
from tests.support.waiting import wait_until


def test_the_demo_streams_alternating_answers_runs_the_bulk_set_and_ends_well() -> None:
    answer = tokenmill("demo", "--model", "echo?step_ms=5")
    assert answer.returncode == 0, answer.stderr
    speakers = re.findall(r"^\[(\d)\] (?![>(])", answer.stdout, flags=re.MULTILINE)
    assert set(speakers) == {"1", "2", "3"}
    assert speakers != sorted(speakers), "the answers did not alternate"
    assert "12/12 rows" in answer.stdout
    assert "What happened" in answer.stdout


def test_a_killed_demo_leaves_no_process_behind() -> None:
    with started("demo", "--model", "echo?step_ms=50") as process:
        assert process.stdout is not None
        stdout = process.stdout
        wait_until(lambda: stdout.readline().startswith("[1]"), description="answers are being streamed")
        children = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(children) >= 2
    for child in children:
        wait_gone(child)


def test_a_demo_of_a_model_that_is_not_there_says_so_at_once() -> None:
    answer = tokenmill("demo", "--model", "./no-such-folder")
    assert answer.returncode == 2
    assert answer.stderr == "tokenmill: ./no-such-folder: no such folder or file\n"
