"""A queue of three partitions: one worker serves them all, and nobody notices but those who count."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner
from tokenmill import AsyncClient, Client, InvalidRequestError, PartitionsError, RequestFailedError, UnknownRequestError
from tokenmill.cli.group import main
from tokenmill.wire.keys import Lane, all_keys, partition_of
from tokenmill_worker.cli import assemble
from tokenmill_worker.engine import Engine, EngineConfig
from tokenmill_worker.queue.consumer import Consumer

from tests.queue.harness import Bench, running_worker, settings_for, uninterrupted_text, worker_process
from tests.support.waiting import wait_until

P = 3


@pytest.fixture
def benches(redis_url: str, server: redis.Redis, queue: str) -> list[Bench]:
    return [Bench(redis_url, server, keys) for keys in all_keys(queue, P)]


@pytest.fixture
def client(redis_url: str, queue: str) -> Iterator[Client]:
    with Client(redis_url, queue, P) as client:
        yield client


def command(bench: Bench, *arguments: str) -> str:
    where = ["--redis", bench.url, "--queue", bench.keys.queue, "--partitions", str(P)]
    result = CliRunner().invoke(main, [*arguments, *where])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_requests_of_all_partitions_are_answered_by_one_worker(benches: list[Bench], client: Client) -> None:
    names = [f"q-{number}" for number in range(60)]
    with running_worker(benches[0], partitions=P) as running:
        jobs = client.submit_many([{"prompt": name, "id": name, "max_tokens": 8, "temperature": 0.0} for name in names])
        for job in jobs:
            assert job.result(timeout=20).text == uninterrupted_text(job.id, max_tokens=8, temperature=0.0)
        seen = running.worker.consumer.statistics()
        assert (seen.num_fetched, len(client.statistics().workers)) == (60, 1)
    assert all(bench.is_at_rest() for bench in benches)
    for name in names:
        assert benches[partition_of(name, P)].job(name)["state"] == "done"


def test_asyncio_finds_them_too(benches: list[Bench]) -> None:
    async def ask() -> list[str]:
        async with AsyncClient(benches[0].url, benches[0].keys.queue, P) as client:
            jobs = await client.submit_many([{"prompt": "hello", "max_tokens": 4}] * 12)
            assert (await client.statistics()).partitions == P
            return [(await job.result(timeout=20)).finish_reason for job in jobs]

    with running_worker(benches[0], partitions=P):
        assert asyncio.run(ask()) == ["length"] * 12


def test_entries_with_the_same_id_in_several_partitions_stay_apart(benches: list[Bench], client: Client) -> None:
    for number, bench in enumerate(benches):
        bench.server.xadd(bench.keys.lane(Lane.NORMAL), {"prompt": f"prompt {number}"}, id="5-1")
    with running_worker(benches[0], partitions=P):
        texts = [client.job("2-5-1", partition=number).result(timeout=20).text for number in range(P)]
    assert len(set(texts)) == P
    for bench, text in zip(benches, texts, strict=True):
        assert bench.terminal("2-5-1").text == text


def test_what_is_drawn_for_an_entry_without_an_id_does_not_depend_on_its_partition(benches: list[Bench]) -> None:
    for bench in benches:
        bench.server.xadd(bench.keys.lane(Lane.NORMAL), {"prompt": "the same"}, id="7-1")
    with running_worker(benches[0], partitions=P):
        assert len({bench.terminal("2-7-1").text for bench in benches}) == 1


def test_a_raw_entry_on_the_wrong_partition_is_dead_lettered_and_its_reader_told(benches: list[Bench]) -> None:
    right = partition_of("stray", P)
    wrong = benches[(right + 1) % P]
    wrong.add_raw({"id": "stray", "prompt": "hello"})
    with running_worker(wrong, partitions=P):
        error = wrong.terminal("stray").error
    assert error is not None
    assert error.code == "wrong_partition"
    assert f"belongs to partition {right} of {P}" in error.message
    (letter,) = wrong.dead_letters()
    assert letter[b"reason"].startswith(b"wrong_partition: ")


def test_who_counts_differently_is_told_before_anything_is_enqueued(benches: list[Bench], client: Client) -> None:
    client.submit("hello")
    with Client(client._core.url, benches[0].keys.queue) as other, pytest.raises(PartitionsError, match="partitions=3"):
        other.submit("hello")
    with running_worker(benches[0], partitions=P):
        pass
    other_worker = running_worker(benches[0], partitions=2)
    with pytest.raises(PartitionsError), other_worker:
        wait_until(lambda: False, description="never", timeout=0.0)
    assert sum(bench.statistics().depth for bench in benches) == 1


def test_a_burst_ends_when_every_partition_is_empty(benches: list[Bench], client: Client) -> None:
    client.submit_many([{"prompt": "hello", "max_tokens": 4, "id": f"q-{number}"} for number in range(30)])
    benches[1].submit("suspect", lane=Lane.QUARANTINE)
    with running_worker(benches[0], partitions=P, burst=True) as running:
        running.wait_end()
    assert client.statistics().depth == 0
    assert benches[1].terminal("suspect").type == "done"


def test_suspects_of_several_partitions_run_alone(benches: list[Bench], client: Client) -> None:
    for number, bench in enumerate(benches):
        bench.submit(f"s-{number}", lane=Lane.QUARANTINE, max_tokens=20)
    with running_worker(benches[0], partitions=P, model="echo?step_ms=2", patience_s=0.2) as running:
        jobs = client.submit_many([{"prompt": "hello", "max_tokens": 30, "id": f"q-{n}"} for n in range(24)])
        num_beside = 0
        while any(bench.result(f"s-{number}").terminal is None for number, bench in enumerate(benches)):
            holdings = running.worker.holdings.tenures()
            num_beside += any(tenure.lane is Lane.QUARANTINE for tenure in holdings) and len(holdings) > 1
        assert num_beside == 0
        assert all(job.result(timeout=20) for job in jobs)
        assert running.worker.consumer.statistics().num_quarantined == P


def test_what_a_killed_worker_held_is_taken_over_in_each_partition(benches: list[Bench], client: Client) -> None:
    with worker_process(benches[0], "--partitions", str(P)) as child:
        jobs = client.submit_many(
            [{"prompt": "hello", "max_tokens": 60, "temperature": 0.0, "id": f"q-{n}"} for n in range(12)]
        )
        for number in range(12):
            benches[partition_of(f"q-{number}", P)].wait_tokens(3, f"q-{number}")
        os.kill(child.pid, signal.SIGKILL)
        child.wait(timeout=10)
    with running_worker(benches[0], partitions=P):
        texts = {job.result(timeout=30).text for job in jobs}
    assert texts == {uninterrupted_text("hello", max_tokens=60, temperature=0.0)}
    assert all(bench.is_at_rest() for bench in benches)


def test_a_drain_hands_back_what_every_partition_holds(benches: list[Bench], client: Client) -> None:
    with running_worker(benches[0], partitions=P, model="echo?step_ms=20"):
        client.submit_many([{"prompt": "hello", "max_tokens": 500, "id": f"q-{n}"} for n in range(6)])
        for number in range(6):
            benches[partition_of(f"q-{number}", P)].wait_tokens(1, f"q-{number}")
    assert sum(bench.statistics().lanes["0"].backlog for bench in benches) == 6
    assert not any(bench.workers() for bench in benches)


def test_running_requests_of_any_partition_are_cancelled(benches: list[Bench], client: Client) -> None:
    with running_worker(benches[0], partitions=P, model="echo?step_ms=20"):
        jobs = client.submit_many([{"prompt": "hello", "max_tokens": 2000, "id": f"q-{n}"} for n in range(6)])
        for job in jobs:
            benches[partition_of(job.id, P)].wait_tokens(1, job.id)
        assert [job.cancel() for job in jobs] == ["flagged"] * 6
        assert {job.result(timeout=10).finish_reason for job in jobs} == {"cancelled"}


def test_the_commands_see_the_whole_queue(benches: list[Bench], client: Client) -> None:
    for number, bench in enumerate(benches):
        bench.add_raw({"body": b"nonsense", "id": f"bad-{number}"})
    with running_worker(benches[0], partitions=P):
        wait_until(lambda: client.statistics().dead_letters == P, description="the dead letters")
        assert len(json.loads(command(benches[0], "queue", "--json"))["workers"]) == 1
        assert command(benches[0], "submit", "hello", "--max-tokens", "4")
        checks = {check["check"]: check for check in json.loads(command(benches[0], "doctor", "--json"))["checks"]}
    assert checks["partitions"]["status"] == "ok"
    assert checks["workers"]["detail"].startswith("1 on queue")
    letters = json.loads(command(benches[0], "dead", "list", "--json"))["letters"]
    assert {letter["entry_id"].partition("/")[0] for letter in letters} == {"0", "1", "2"}
    assert "1 dead letters" in command(benches[0], "dead", "purge", "--yes", letters[0]["entry_id"])
    assert "2 dead letters" in command(benches[0], "dead", "purge", "--yes", "--all")


def test_a_bulk_run_goes_over_all_partitions(benches: list[Bench], tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "done.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"hello {number}"}) + "\n" for number in range(50)))
    with running_worker(benches[0], partitions=P):
        command(benches[0], "bulk", "run", str(rows), "--out", str(out), "--max-tokens", "4", "--raw")
    assert [json.loads(line)["input"]["prompt"] for line in out.read_text().splitlines()] == [
        f"hello {number}" for number in range(50)
    ]
    assert all(bench.server.keys(bench.keys.group_done("*")) for bench in benches)


def test_a_dead_letter_is_asked_again_where_its_new_id_belongs(benches: list[Bench], client: Client) -> None:
    bench = benches[partition_of("q-1", P)]
    bench.submit("q-1")
    bench.add_raw({"id": "q-1", "prompt": "another"})
    with running_worker(bench, partitions=P):
        wait_until(bench.dead_letters, description="the conflict's letter")
        command(bench, "dead", "redrive", "--all")
        assert client.job("q-1~1").result(timeout=20).finish_reason == "length"


def test_a_partition_out_of_range_and_an_unknown_one_are_told(client: Client) -> None:
    with pytest.raises(UnknownRequestError):
        client.job("nobody").result(timeout=5)
    with pytest.raises(InvalidRequestError, match="no partition 3"):
        client.job("2-5-1", partition=P)


def test_one_partition_is_put_together_without_what_several_share(benches: list[Bench]) -> None:
    with_one = assemble(Engine(EngineConfig(model="echo")), settings_for(benches[0]), benches[0].url)
    assert isinstance(with_one.consumer, Consumer)


def test_a_request_that_a_partitions_model_refuses_fails_alone(benches: list[Bench], client: Client) -> None:
    with running_worker(benches[0], partitions=P), pytest.raises(RequestFailedError, match="model_not_found"):
        client.submit("hello", model="another").result(timeout=10)
