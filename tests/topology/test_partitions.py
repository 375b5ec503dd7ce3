"""One queue over all masters of a cluster: each holds some of its partitions, and one worker serves them together."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenmill import AsyncClient, Client, Completion
from tokenmill.cli import main
from tokenmill.wire.keys import all_keys, partition_of
from tokenmill.wire.store import connect

from tests.queue.harness import Bench, running_worker
from tests.support.topologies import Cluster, running_cluster
from tests.support.waiting import wait_until

P = 6
QUEUE = "default"
NUM_REQUESTS = 60
MAX_TOKENS = 60


@contextmanager
def benches(url: str) -> Iterator[list[Bench]]:
    """One for each partition, each with a connection to the node that has it."""
    with ExitStack() as stack:
        yield [Bench(url, stack.enter_context(connect(url, key=keys.tag)), keys) for keys in all_keys(QUEUE, P)]


def command(url: str, *arguments: str) -> str:
    result = CliRunner().invoke(main, [*arguments, "--redis", url, "--queue", QUEUE, "--partitions", str(P)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_partitions_are_spread_and_clients_and_commands_find_them(cluster: Cluster, tmp_path: Path) -> None:
    assert {cluster.master_of(keys.tag).port for keys in all_keys(QUEUE, P)} == {node.port for node in cluster.masters}
    rows, out = tmp_path / "rows.jsonl", tmp_path / "done.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"hello {number}"}) + "\n" for number in range(40)))

    async def ask() -> set[str]:
        async with AsyncClient(cluster.url, QUEUE, P) as client:
            jobs = await client.submit_many([{"prompt": "hello", "max_tokens": 4}] * 20, durable=True)
            assert {job.durability for job in jobs} == {"replica"}
            return {(await job.result(timeout=30)).finish_reason for job in jobs}

    with benches(cluster.url) as parts, running_worker(parts[0], partitions=P), Client(cluster.url, QUEUE, P) as client:
        jobs = client.submit_many([{"prompt": "hello", "max_tokens": 4}] * 40)
        assert {job.result(timeout=30).finish_reason for job in jobs} == {"length"}
        assert asyncio.run(ask()) == {"length"}
        command(cluster.url, "bulk", "run", str(rows), "--out", str(out), "--max-tokens", "4", "--raw")
        assert len(json.loads(command(cluster.url, "queue", "--json"))["workers"]) == 1
        checks = json.loads(command(cluster.url, "doctor", "--json"))["checks"]
    assert len(out.read_text().splitlines()) == 40
    (found,) = [check for check in checks if check["check"] == "partitions"]
    assert (found["status"], found["detail"].partition(",")[0]) == ("ok", f"{P} on 3 nodes")


@pytest.mark.slow
def test_nothing_is_lost_when_one_of_the_masters_dies_under_load() -> None:
    with running_cluster() as cluster, benches(cluster.url) as parts, Client(cluster.url, QUEUE, P) as client:
        victim, heir = cluster.master_of(parts[0].keys.tag), cluster.replica_of(parts[0].keys.tag)
        with running_worker(parts[0], partitions=P, model="echo?step_ms=20"):
            names = [f"q-{number}" for number in range(NUM_REQUESTS)]
            jobs = client.submit_many([{"prompt": name, "id": name, "max_tokens": MAX_TOKENS} for name in names])
            there = next(name for name in names if partition_of(name, P) == 0)
            parts[0].wait_tokens(5, there)
            assert victim.client.execute_command("WAIT", 1, 5_000) == 1
            victim.kill()
            elsewhere = next(keys for keys in all_keys(QUEUE, P) if cluster.master_of(keys.tag) is not victim)
            other = next(name for name in (f"new-{n}" for n in range(100)) if elsewhere.owns(name))
            assert client.submit("meanwhile", id=other, max_tokens=4).result(timeout=30).finish_reason == "length"
            wait_until(lambda: heir.role == "master", description="the replica is promoted", timeout=30.0)
            for job in jobs:
                assert job.result(timeout=90).usage.completion_tokens == MAX_TOKENS
                assert parts[partition_of(job.id, P)].result(job.id).terminal is not None
            assert {answer.finish_reason for answer in _answers(client, 20)} == {"length"}


def _answers(client: Client, number: int) -> Iterator[Completion]:
    jobs = client.submit_many([{"prompt": "and on", "max_tokens": 4}] * number)
    return (job.result(timeout=30) for job in jobs)
