"""Requests end to end where the server is a cluster, behind TLS, or lets its users do only what they must."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from click.testing import CliRunner
from tokenmill import AsyncClient, Client, UnavailableError
from tokenmill.cli import main
from tokenmill.cli.server_checks import LEAST_ACL
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import connect

from tests.queue.harness import Bench, running_worker
from tests.support.topologies import Cluster, SecureServer

QUEUES = ("a", "b", "c")  # each of them on another master


@contextlib.contextmanager
def serving(url: str, queue: str) -> Iterator[Client]:
    """A client of a queue with an echo worker, both through `url`."""
    keys = Keys(queue)
    with (
        connect(url, key=keys.tag) as server,
        running_worker(Bench(url, server, keys)),
        Client(url, queue=queue) as client,
    ):
        yield client


def assert_serves(client: Client) -> None:
    jobs = client.submit_many([{"prompt": f"hello {number}", "max_tokens": 4} for number in range(20)])
    assert all(job.result(timeout=30).finish_reason == "length" for job in jobs)
    assert "".join(delta.text for delta in jobs[0].stream()) == jobs[0].result().text
    assert client.statistics().depth == 0


def test_queues_of_a_cluster_are_served_by_different_masters(cluster: Cluster) -> None:
    for queue in QUEUES:
        with serving(cluster.url, queue) as client:
            assert_serves(client)
    owners = {queue: cluster.master_of(Keys(queue).tag) for queue in QUEUES}
    assert len(set(owners.values())) == len(QUEUES)
    for queue, owner in owners.items():
        assert {name.decode() for name in owner.client.scan_iter(match=f"{Keys(queue).tag}r:*")}


def test_asyncio_finds_the_master_too(cluster: Cluster) -> None:
    async def ask() -> str:
        async with AsyncClient(cluster.url, queue="a") as client:
            job = await client.submit("hello", max_tokens=4, temperature=0.0)
            return (await job.result(timeout=30)).text

    with serving(cluster.url, "a") as client:
        assert asyncio.run(ask()) == client.submit("hello", max_tokens=4, temperature=0.0).result(timeout=30).text


def test_a_durable_submission_reaches_the_masters_replica(cluster: Cluster) -> None:
    with Client(cluster.url, queue="a") as client:
        assert client.submit("hello", durable=True).durability == "replica"


def test_the_commands_take_a_clusters_url(cluster: Cluster) -> None:
    with serving(cluster.url, "c") as client:
        jobs = client.submit_many([{"prompt": "hello", "max_tokens": 4}] * 3)
        assert all(job.result(timeout=30) for job in jobs)
        options = ["--redis", cluster.url, "--queue", "c"]
        shown = json.loads(_output(["queue", "--json", *options]))
        assert (shown["depth"], len(shown["workers"])) == (0, 1)
        assert json.loads(_output(["doctor", "--json", *options]))["ok"]
        assert _output(["submit", "hello", "--max-tokens", "4", *options])


def _output(arguments: list[str]) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_bulk_run_goes_through_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "done.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"hello {number}"}) + "\n" for number in range(20)))
    with serving(cluster.url, "b"):
        options = ["--redis", cluster.url, "--queue", "b", "--max-tokens", "4", "--raw"]
        _output(["bulk", "run", str(rows), "--out", str(out), "--column", "prompt", *options])
    assert len(out.read_text().splitlines()) == 20


def test_one_node_that_lives_is_enough_to_find_the_others(cluster: Cluster) -> None:
    url = f"redis+cluster://127.0.0.1:1,{cluster.replicas[0].address}"
    with serving(url, "b") as client:
        assert_serves(client)


def test_a_plain_url_of_the_wrong_node_is_told_which_url_to_take(cluster: Cluster) -> None:
    wrong = next(node for node in cluster.masters if node is not cluster.master_of(Keys("a").tag))
    url = f"redis://{wrong.address}"
    with Client(url, queue="a") as client, pytest.raises(UnavailableError, match=r"redis\+cluster://"):
        client.submit("hello")


def test_requests_travel_through_tls(secure: SecureServer) -> None:
    with serving(f"{secure.url}?ssl_ca_certs={quote(str(secure.authority))}", "default") as client:
        assert_serves(client)


def test_asyncio_travels_through_tls_too(secure: SecureServer) -> None:
    async def status() -> str:
        async with AsyncClient(f"{secure.url}?ssl_ca_certs={quote(str(secure.authority))}") as client:
            return await (await client.submit("hello")).status()

    assert asyncio.run(status()) == "queued"


def test_a_certificate_of_an_unknown_authority_is_refused(secure: SecureServer) -> None:
    with Client(secure.url) as client, pytest.raises(UnavailableError, match="certificate verify failed"):
        client.submit("hello")


@pytest.fixture(scope="module")
def least(secure: SecureServer) -> str:
    """The URL of a user with no more than what `tokenmill doctor` says that it needs."""
    secure.node.client.execute_command("ACL", "SETUSER", "mill", "on", ">p@ss", *LEAST_ACL.split())
    return f"redis://mill:{quote('p@ss')}@{secure.node.address}/0"


def test_the_least_rule_that_doctor_tells_is_enough(least: str) -> None:
    with serving(least, "acl") as client:
        assert_serves(client)
        client.submit("hello", max_tokens=4000).cancel()
        assert client.submit("hello", durable=True).durability == "memory"  # it has no append-only file and no replica


def test_the_least_rule_is_enough_in_a_cluster(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.client.execute_command("ACL", "SETUSER", "mill", "on", ">pass", *LEAST_ACL.split())
    with serving(cluster.url.replace("://", "://mill:pass@"), "a") as client:
        assert_serves(client)


def test_the_least_rule_keeps_other_keys_and_the_server_itself_closed(least: str) -> None:
    with connect(least) as user:
        for forbidden in (["GET", "another"], ["CONFIG", "GET", "*"], ["SHUTDOWN"], ["ACL", "LIST"]):
            with pytest.raises(redis.exceptions.NoPermissionError):
                user.execute_command(*forbidden)


def test_a_wrong_password_is_told_as_such_and_not_shown(cluster: Cluster, least: str) -> None:
    for url in (least.replace("p%40ss", "wrong"), cluster.url.replace("://", "://mill:wrong@")):
        with Client(url) as client, pytest.raises(UnavailableError, match="refused the user or password") as caught:
            client.submit("hello")
        assert "wrong" not in str(caught.value)
