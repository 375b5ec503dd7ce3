"""A worker of two processes on a real queue: it drains as one and dies as one. Each start takes many seconds."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tokenmill.lifeline import tied_to_us
from tokenmill_worker.engine.api import EngineConfig, SamplingParams
from tokenmill_worker.engine.engine import Engine

from tests.engine.models.conftest import tiny_checkpoint as tiny_checkpoint
from tests.queue.conftest import bench as bench
from tests.queue.harness import LEASE_TTL_S, Bench
from tests.support.waiting import wait_until

START_TIMEOUT_S = 120.0
PROMPT = list(range(3, 40))
NUM_TOKENS = 400  # many seconds of steps: a test has the time to interfere
TOKENMILL = [sys.executable, "-m", "tokenmill.cli", "worker"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tokenmill.cli", "worker"]

Checkpoint = Callable[[str], Path]


@contextlib.contextmanager
def pair(bench: Bench, folder: Path, start: Sequence[str] = TOKENMILL) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker of two processes, ready; nobody outlives the block."""
    options = ["--model", str(folder), "--redis", bench.url, "--queue", bench.keys.queue, "--dtype", "float32"]
    environment = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "TOKENMILL_LEASE_TTL_S": str(LEASE_TTL_S)}
    environment |= {"TOKENMILL_ATTENTION_BACKEND": "sdpa", "TOKENMILL_KV_CACHE_TOKENS": "2048", "HOME": "/nowhere"}
    before = set(bench.workers())
    child = subprocess.Popen(
        tied_to_us([*start, *options, "--device", "cpu", "--tensor-parallel-size", "2"]), env=environment
    )
    try:
        wait_until(lambda: set(bench.workers()) - before, description="the pair serves", timeout=START_TIMEOUT_S)
        yield child
    finally:
        child.kill()
        child.wait()


def leader_of(bench: Bench) -> int:
    (name,) = bench.workers()
    return int(bench.server.hget(bench.keys.worker_info(name), "pid"))


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def submit(bench: Bench) -> None:
    bench.submit("q-1", prompt=PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True)


def alone(folder: Path) -> list[int]:
    config = EngineConfig(model=str(folder), dtype="float32", device="cpu", attention_backend="sdpa", num_threads=1)
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    return Engine(config).generate([PROMPT], params)[0].token_ids


@pytest.mark.slow
@pytest.mark.parametrize("start", [TOKENMILL, TORCHRUN], ids=["tokenmill", "torchrun"])
def test_sigterm_drains_both_and_exits_0(bench: Bench, tiny_checkpoint: Checkpoint, start: Sequence[str]) -> None:
    folder = tiny_checkpoint("llama")
    with pair(bench, folder, start) as child:
        submit(bench)
        bench.wait_tokens(1)
        child.send_signal(signal.SIGTERM)
        code = child.wait(timeout=60)
    assert code == 0 or start is TORCHRUN  # which reports the signal that it got itself
    result = bench.result("q-1")
    assert result.terminal is not None
    assert result.token_ids == alone(folder)
    assert bench.is_at_rest()


@pytest.mark.slow
@pytest.mark.parametrize("is_leader", [True, False], ids=["leader", "follower"])
def test_a_pair_that_loses_one_dies_and_the_next_goes_on(
    bench: Bench, tiny_checkpoint: Checkpoint, is_leader: bool
) -> None:
    folder = tiny_checkpoint("llama")
    with pair(bench, folder) as first:
        submit(bench)
        bench.wait_tokens(1)
        leader = leader_of(bench)
        victim = leader if is_leader else next(pid for pid in children_of(first.pid) if pid != leader)
        os.kill(victim, signal.SIGKILL)
        assert first.wait(timeout=60) != 0
        assert bench.result("q-1").terminal is None, "nobody was told an error"
    with pair(bench, folder):
        result = bench.wait_result("q-1", timeout=60)
    assert result.terminal is not None
    assert result.terminal.type == "done"
    assert result.token_ids == alone(folder)
