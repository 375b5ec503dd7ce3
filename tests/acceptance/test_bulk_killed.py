"""A bulk run whose runner, workers and server are killed at random moments: every row once, none done for nothing."""

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import connect

from tests.acceptance.bulk_scene import (
    BulkProcess,
    Victim,
    carry_out,
    random_kills,
    run_to_the_end,
    scaled,
    write_rows,
)
from tests.acceptance.fleet import Fleet, running_fleet
from tests.acceptance.near_ties import assert_same_but_for_near_ties
from tests.queue.harness import Bench
from tests.support.prompts import load_prompts
from tests.support.servers import ForgetfulServer

NUM_KILLS = 20
NUM_WORKERS = 2


@pytest.fixture
def forgetful() -> Iterator[ForgetfulServer]:
    server = ForgetfulServer()
    yield server
    server.kill()


class Scenario(NamedTuple):
    questions: list[str]
    num_kills: int
    options: tuple[object, ...]
    fleet: dict[str, object]


def test_a_few_kills_and_a_lost_server_change_nothing(forgetful: ForgetfulServer, tmp_path: Path) -> None:
    scenario = Scenario(
        questions=[f"question {number}" for number in range(240)],
        num_kills=4,
        options=("--max-tokens", 8, "--temperature", 0),
        fleet={"model": "echo?step_ms=5", "max_num_seqs": 8},
    )
    undisturbed, killed = play(scenario, forgetful, tmp_path)
    assert killed == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(1_500)
def test_twenty_kills_of_a_hundred_thousand_rows(forgetful: ForgetfulServer, tmp_path: Path) -> None:
    scenario = Scenario(
        questions=[f"question {number}" for number in range(scaled(100_000))],
        num_kills=NUM_KILLS,
        options=("--max-tokens", 2, "--raw"),
        fleet={"model": "echo", "max_num_seqs": 256},
    )
    undisturbed, killed = play(scenario, forgetful, tmp_path)
    assert killed == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(2_400)
def test_twenty_kills_of_a_real_model(forgetful: ForgetfulServer, tmp_path: Path) -> None:
    scenario = Scenario(
        questions=load_prompts(scaled(500)).texts,
        num_kills=NUM_KILLS,
        options=("--max-tokens", 16, "--temperature", 0),
        fleet={"model": "smollm2", "dtype": "float32", "max_num_seqs": 16, "kv_cache_tokens": 16_384},
    )
    undisturbed, killed = play(scenario, forgetful, tmp_path)
    assert len(killed) == len(undisturbed)
    num_different = assert_same_but_for_near_ties("smollm2", map(json.loads, undisturbed), map(json.loads, killed))
    print(f"{num_different} rows with near-ties: kills change what runs side by side")


def play(scenario: Scenario, server: ForgetfulServer, folder: Path) -> tuple[list[bytes], list[bytes]]:
    """The sorted lines of an undisturbed run and of one with kills."""
    rows = write_rows(folder / "rows.jsonl", ({"question": text} for text in scenario.questions))
    options = ("--redis", server.url, "--column", "question", *scenario.options)
    with connect(server.url) as bare, running_fleet(Bench(server.url, bare, Keys()), folder, **scenario.fleet) as fleet:
        fleet.start_ready(NUM_WORKERS)
        undisturbed = run_to_the_end(rows, folder / "undisturbed.jsonl", *options).out.read_bytes()
        started_s = time.monotonic()
        run = BulkProcess(rows, folder / "killed.jsonl", *options)
        try:
            _disturb(scenario, run, server, fleet, num_bytes=len(undisturbed))
        finally:
            run.kill()
    print(f"; {time.monotonic() - started_s:.0f} s with the kills")
    return sorted(undisturbed.splitlines()), sorted(run.out.read_bytes().splitlines())


def _disturb(scenario: Scenario, run: BulkProcess, server: ForgetfulServer, fleet: Fleet, *, num_bytes: int) -> None:
    rng = random.Random(1)

    def kill_worker() -> None:
        rng.choice([worker for worker in fleet.started if worker.is_alive()]).kill()
        fleet.start()

    def lose_server() -> None:
        server.kill()
        server.start()

    slay: dict[Victim, Callable[[], None]] = {
        "runner": run.kill_and_restart,
        "worker": kill_worker,
        "server": lose_server,
    }
    on_disk = carry_out(random_kills(scenario.num_kills, seed=0), run, num_bytes=num_bytes, slay=slay)
    run.wait_done()
    begun = [one for one in fleet.begun if one.request_id.startswith(run.run_id)]
    print(f"\n{scenario.num_kills} kills, {len(scenario.questions)} rows, begun {len(begun)} times", end="")
    assert on_disk.begun_again(begun) == []
