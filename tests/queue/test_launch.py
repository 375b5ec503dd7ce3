"""Several processes started as one, tried on programs of a line each."""

import os
import sys
import threading
from pathlib import Path

import pytest
from tokenmill_worker import launch

from tests.support.waiting import wait_until


def program(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys, time, signal\nrank = int(os.environ['RANK'])\n{code}"]


def test_every_process_is_told_which_it_is(tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
    code = f"open(rf'{tmp_path}/{{rank}}', 'w').write(' '.join(os.environ[name] for name in {names}))"
    assert launch.run(program(code), 3) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == [f"{n} {n} 3 127.0.0.1" for n in range(3)]


@pytest.mark.parametrize(("code", "expected"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
@pytest.mark.parametrize("culprit", [0, 1])
def test_one_that_fails_ends_all_with_its_exit_code(
    code: str, expected: int, culprit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "GRACE_S", 0.2)
    assert launch.run(program(f"time.sleep(60) if rank != {culprit} else {code}"), 2) == expected


def test_a_signal_goes_to_the_first_alone(tmp_path: Path) -> None:
    """Which ends the others in its own time, here by a file."""
    end = f"{tmp_path}/end"
    leader = f"signal.signal(15, lambda *_: open(r'{end}', 'w').close()); open(r'{tmp_path}/up', 'w').close()"
    code = f"""
if rank == 0: {leader}
while not os.path.exists(r'{end}'): time.sleep(0.01)
"""

    def stop_when_up() -> None:
        wait_until((tmp_path / "up").exists, description="rank 0 listens")
        os.kill(os.getpid(), 15)

    stopper = threading.Thread(target=stop_when_up)
    stopper.start()
    assert launch.run(program(code), 2) == 0
    stopper.join()


def test_a_process_that_several_were_started_with_knows_its_rank() -> None:
    assert launch.rank_of({"RANK": "1", "WORLD_SIZE": "2"}) == 1
    assert launch.rank_of({"RANK": "1"}) is None
    assert launch.rank_of({}) is None
