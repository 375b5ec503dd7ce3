"""Servers in the shapes that they are deployed in, as processes on loopback: cluster, sentinel, TLS, ACL. No queue.

All of them die with this process. The binary is the embedded server's: there is no command-line tool with it, so a
cluster is put together by commands.
"""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot
from tokenmill.embedded import find_server
from tokenmill.lifeline import tied_to_us

from tests.support.servers import wait_gone
from tests.support.waiting import wait_until

NODE_TIMEOUT_MS = 1_000  # a master silent for so long is failed over; short, because tests wait for it
NUM_MASTERS = 3
NUM_SLOTS = 16_384
SERVICE = "millmaster"
_BUS_OFFSET = 10_000  # of a cluster node's second port
_PORTS = (11_000, 22_000)


@dataclass(eq=False)
class Node:
    """One server process; `client` speaks to it and no other, as who must look behind a topology does."""

    port: int
    process: "subprocess.Popen[bytes]"
    client: Any  # redis-py types each reply as everything that it could be

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        wait_gone(self.process.pid)

    @property
    def role(self) -> str:
        """master, slave, or gone."""
        with contextlib.suppress(redis.RedisError):
            return str(self.client.info("replication")["role"])
        return "gone"


@dataclass
class Cluster:
    masters: list[Node]
    replicas: list[Node]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(node.address for node in self.masters)

    @property
    def nodes(self) -> list[Node]:
        return [*self.masters, *self.replicas]

    def master_of(self, key: str) -> Node:
        """As it was put together."""
        return self.masters[_owner(key_slot(key.encode()))]

    def replica_of(self, key: str) -> Node:
        return self.replicas[_owner(key_slot(key.encode()))]


@dataclass
class Watched:
    """A master, its replica, and a sentinel that is a majority of its own."""

    master: Node
    replica: Node
    sentinel: Node

    @property
    def url(self) -> str:
        return f"redis+sentinel://{self.sentinel.address}/{SERVICE}"


@dataclass(frozen=True)
class SecureServer:
    url: str
    authority: Path
    node: Node = field(compare=False)


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Three masters with a replica each, all slots served, and every node knows it."""
    with _folder() as folder, contextlib.ExitStack() as stack:
        ports = _free_ports(2 * NUM_MASTERS)
        options = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(NODE_TIMEOUT_MS),
            "cluster-replica-validity-factor": "0",  # a replica may always take over: the tests are about after
            "repl-diskless-sync-delay": "0",
        }
        nodes = [stack.enter_context(running_node(folder / str(port), port, options)) for port in ports]
        cluster = Cluster(nodes[:NUM_MASTERS], nodes[NUM_MASTERS:])
        _join(cluster)
        yield cluster


@contextlib.contextmanager
def running_watched() -> Iterator[Watched]:
    with _folder() as folder, contextlib.ExitStack() as stack:
        ports = _free_ports(3)
        options = {"repl-diskless-sync-delay": "0"}
        master = stack.enter_context(running_node(folder / "master", ports[0], options))
        replica_options = {**options, "replicaof": f"127.0.0.1 {master.port}"}
        replica = stack.enter_context(running_node(folder / "replica", ports[1], replica_options))
        wait_synced(replica)
        sentinel = stack.enter_context(_running_sentinel(folder / "sentinel", ports[2], master))
        wait_until(
            lambda: sentinel.client.execute_command("SENTINEL", "REPLICAS", SERVICE),
            description="the sentinel knows the replica",
            timeout=20.0,
        )
        yield Watched(master, replica, sentinel)


@contextlib.contextmanager
def running_tls() -> Iterator[SecureServer]:
    """A server behind TLS: the binary has none of its own, so a terminator stands before it, as it does in clouds.

    The certificate is for 127.0.0.1 and localhost.
    """
    with _folder() as folder, contextlib.ExitStack() as stack:
        authority = make_certificate(folder)
        (port,) = _free_ports(1)
        node = stack.enter_context(running_node(folder / "data", port, {}))
        secure = stack.enter_context(_terminator(folder, port))
        yield SecureServer(f"rediss://127.0.0.1:{secure}/0", authority, node)


@contextlib.contextmanager
def _terminator(folder: Path, port: int) -> Iterator[int]:
    """The port on which TLS is spoken; what is said there is passed on to `port`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(
        asyncio.start_server(lambda reader, writer: _pass_on(reader, writer, port), "127.0.0.1", 0, ssl=context)
    )
    thread = threading.Thread(target=loop.run_forever, name="tls-terminator")
    thread.start()
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(_end(listening), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await asyncio.gather(_copy(reader, server_writer), _copy(server_reader, writer))
    finally:
        for end in (server_writer, writer):
            end.transport.abort()
            with contextlib.suppress(OSError):
                await end.wait_closed()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while some := await source.read(1 << 16):
            target.write(some)
            await target.drain()
    target.close()


async def _end(listening: asyncio.Server) -> None:
    listening.close()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def make_certificate(folder: Path) -> Path:
    """An authority and a certificate by it, in `folder`; returns the authority's."""
    (folder / "names.cnf").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    key = ("-newkey", "rsa:2048", "-nodes")
    _openssl(folder, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=mill-test-ca")
    _openssl(folder, "req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names.cnf")
    _openssl(folder, "x509", "-req", "-in", "server.csr", "-out", "server.crt", *signing)
    return folder / "ca.crt"


@contextlib.contextmanager
def running_node(folder: Path, port: int, options: Mapping[str, str], *, flags: Sequence[str] = ()) -> Iterator[Node]:
    """One server that answers; killed when the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"port": str(port), "bind": "127.0.0.1", "dir": str(folder), "save": "", "appendonly": "no", **options}
    arguments = [part for name, value in given.items() for part in (f"--{name}", *value.split(" "))]
    with _process([str(find_server()), *arguments], folder / "log") as process, _client(port) as client:
        _wait_answer(client, process, folder / "log")
        yield Node(port, process, client)


@contextlib.contextmanager
def _running_sentinel(folder: Path, port: int, master: Node) -> Iterator[Node]:
    folder.mkdir()
    config = folder / "sentinel.conf"  # a sentinel keeps what it learns in its file, so it insists on one
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 1\n"
        f"sentinel down-after-milliseconds {SERVICE} {NODE_TIMEOUT_MS}\n"
        f"sentinel failover-timeout {SERVICE} 5000\n"
    )
    with _process([str(find_server()), str(config), "--sentinel"], folder / "log") as process, _client(port) as client:
        _wait_answer(client, process, folder / "log")
        yield Node(port, process, client)


def _client(port: int) -> redis.Redis:
    return redis.Redis(port=port, socket_timeout=5, socket_connect_timeout=1, protocol=2)


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen(tied_to_us(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait_answer(client: redis.Redis, process: "subprocess.Popen[bytes]", log: Path) -> None:
    def answers() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"the server ended: {log.read_text(errors='replace')[-500:]}")
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            return bool(client.ping())
        return False

    wait_until(answers, description="the server answers")


# A cluster by commands


def _join(cluster: Cluster) -> None:
    first = cluster.masters[0]
    for number, master in enumerate(cluster.masters):
        start, end = _range(number)
        master.client.execute_command("CLUSTER", "ADDSLOTSRANGE", start, end)
        master.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for node in cluster.nodes[1:]:
        first.client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
    wait_until(lambda: _all_know_all(cluster), description="every node knows every other", timeout=20.0)
    for master, replica in zip(cluster.masters, cluster.replicas, strict=True):
        replica.client.execute_command("CLUSTER", "REPLICATE", _text(master.client.execute_command("CLUSTER", "MYID")))
    for replica in cluster.replicas:
        wait_synced(replica)
    wait_until(lambda: all(_is_whole(node) for node in cluster.nodes), description="the cluster is up", timeout=20.0)


def _all_know_all(cluster: Cluster) -> bool:
    for node in cluster.nodes:
        lines = _text(node.client.execute_command("CLUSTER", "NODES")).strip().splitlines()
        if len(lines) != len(cluster.nodes) or any("handshake" in line for line in lines):
            return False
    return True


def _is_whole(node: Node) -> bool:
    """It serves, and knows each range's master and replica."""
    state = _text(node.client.execute_command("CLUSTER", "INFO"))
    ranges = node.client.execute_command("CLUSTER", "SLOTS")
    return "cluster_state:ok" in state and len(ranges) == NUM_MASTERS and all(len(found) == 4 for found in ranges)


def wait_synced(replica: Node) -> None:
    """The replica has all that its master had."""
    wait_until(
        lambda: replica.client.info("replication").get("master_link_status") == "up",
        description="the replica follows its master",
        timeout=20.0,
    )


def _range(number: int) -> tuple[int, int]:
    return number * NUM_SLOTS // NUM_MASTERS, (number + 1) * NUM_SLOTS // NUM_MASTERS - 1


def _owner(slot: int) -> int:
    return next(number for number in range(NUM_MASTERS) if slot <= _range(number)[1])


def _text(reply: bytes | str | Mapping[str, object]) -> str:
    """redis-py reads some replies of CLUSTER, whatever the form they are asked in."""
    if isinstance(reply, Mapping):
        return "\n".join(f"{name}:{value}" for name, value in reply.items())
    return reply.decode() if isinstance(reply, bytes) else reply


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mill-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(number: int) -> list[int]:
    """Free ports, each with the one that a cluster node would add to it.

    Below those that the kernel gives to outgoing connections, so that none of them takes one meanwhile.
    """
    ports: list[int] = []
    while len(ports) < number:
        port = random.randrange(*_PORTS)
        if port not in ports and _is_free(port) and _is_free(port + _BUS_OFFSET):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


def _openssl(folder: Path, *arguments: str) -> None:
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    subprocess.run(["openssl", *arguments], cwd=folder, env=environment, check=True, capture_output=True, timeout=30)
