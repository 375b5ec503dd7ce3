"""Clients that send too much, too slowly, or what is no message: a clear error each, and the next client is served."""

import json
import socket
from collections.abc import Iterator

import httpx2 as httpx
import pytest

from tests.gateway.running import RunningGateway, running_gateway
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
MB = 1 << 20


@pytest.fixture(scope="module")
def hasty(redis_url: str, echo_queue: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that waits half a second for what others wait ten or thirty for, and keeps files up to 1 MB."""
    with running_gateway(
        redis_url=redis_url,
        queue=echo_queue,
        files=tmp_path_factory.mktemp("files"),
        max_file_bytes=MB,
        head_timeout_s=0.5,
        body_timeout_s=0.5,
        linger_s=0.5,
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def still_serves(hasty: RunningGateway) -> Iterator[None]:
    yield
    assert httpx.get(f"{hasty.url}/healthz").status_code == 200


def connected(gateway: RunningGateway) -> socket.socket:
    address = httpx.URL(gateway.url)
    return socket.create_connection((str(address.host), address.port or 0), timeout=10)


def head(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: here", *headers, "", ""]).encode()


def rest(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = b""
    while more := connection.recv(65_536):
        received += more
    return received


def error_of(received: bytes) -> tuple[int, dict[str, str]]:
    top, _, body = received.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(body)["error"]


# --- too much ---


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(hasty: RunningGateway) -> None:
    with connected(hasty) as connection:
        connection.sendall(head(CHAT, f"Content-Length: {10 * MB}", "Content-Type: application/json"))
        status, error = error_of(rest(connection))
    assert (status, error["code"]) == (413, "request_too_large")


def test_ten_megabytes_get_a_413_that_the_client_can_read(hasty: RunningGateway) -> None:
    answer = httpx.post(f"{hasty.url}{CHAT}", content=b"x" * (10 * MB), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert "2,097,152 bytes" in answer.json()["error"]["message"]


def test_a_body_in_chunks_is_refused_once_it_is_too_large(hasty: RunningGateway) -> None:
    with connected(hasty) as connection:
        connection.sendall(head(CHAT, "Transfer-Encoding: chunked", "Content-Type: application/json"))
        for _ in range(3):
            connection.sendall(b"100000\r\n" + b"x" * MB + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        status, error = error_of(rest(connection))
    assert (status, error["code"]) == (413, "request_too_large")


def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(hasty: RunningGateway) -> None:
    for content in (b"x" * (MB + 1), b"x" * (3 * MB)):
        answer = httpx.post(
            f"{hasty.v1}/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}, timeout=30
        )
        assert answer.status_code == 413, answer.text
    assert hasty.settings.files is not None
    assert list((hasty.settings.files / "openai" / "files").iterdir()) == []


# --- too slowly ---


def test_a_client_that_says_nothing_is_let_go(hasty: RunningGateway) -> None:
    with connected(hasty) as connection:
        assert rest(connection) == b""


def test_a_head_that_comes_byte_by_byte_is_not_waited_for(hasty: RunningGateway) -> None:
    with connected(hasty) as connection:
        connection.settimeout(0.05)
        wait_until(lambda: is_closed_after(connection, b"G"), description="the gateway has given up")


def is_closed_after(connection: socket.socket, data: bytes) -> bool:
    """Sends a little more, unless the other side has closed."""
    try:
        connection.sendall(data)
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_the_second_request_of_a_connection_must_come_too(hasty: RunningGateway) -> None:
    with connected(hasty) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
        assert b"200 OK" in connection.recv(65_536)
        connection.sendall(b"GET /healthz HT")
        assert b"200 OK" not in rest(connection)


def test_a_body_that_does_not_come_gets_a_408(hasty: RunningGateway) -> None:
    with connected(hasty) as connection:
        connection.sendall(head(CHAT, "Content-Length: 100", "Content-Type: application/json") + b'{"messages": [')
        status, error = error_of(rest(connection))
    assert (status, error["code"]) == (408, "request_timeout")


def test_an_upload_that_stops_gets_a_408_and_leaves_nothing(hasty: RunningGateway) -> None:
    with connected(hasty) as connection:
        kind = "Content-Type: multipart/form-data; boundary=b"
        connection.sendall(head("/v1/files", "Content-Length: 1000", kind) + b"--b\r\n")
        status, _ = error_of(rest(connection))
    assert status == 408
    assert hasty.settings.files is not None
    assert list((hasty.settings.files / "openai" / "files").iterdir()) == []


# --- no message ---


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        head(CHAT, "Content-Length: many"),
        head(CHAT, "Content-Length: 1", "Content-Length: 2"),
        head(CHAT, "Transfer-Encoding: chunked") + b"nonsense\r\n",
    ],
    ids=["line", "no host", "no length", "two lengths", "no chunk"],
)
def test_what_is_no_http_is_told_so(hasty: RunningGateway, data: bytes) -> None:
    with connected(hasty) as connection:
        connection.sendall(data)
        status, error = error_of(rest(connection))
    assert status == 400, error


DEEP = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "invalid UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "half a surrogate": b'{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "deep": DEEP,
    "an array": b"[]",
    "a number": b"1" * 10_000,
    "NaN": b'{"model": "echo", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "infinity": b'{"model": "echo", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    "huge n": b'{"model": "echo", "messages": [{"role": "user", "content": "x"}], "n": 1' + b"0" * 400 + b"}",
    "large n": b'{"model": "echo", "messages": [{"role": "user", "content": "x"}], "n": 1000000}',
    "huge integer": b'{"model": "echo", "messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5_000 + b"}",
    "wrong type": b'{"model": "echo", "messages": "hello"}',
    "a number as model": b'{"model": 7, "messages": [{"role": "user", "content": "x"}]}',
    "NUL in the model": b'{"model": "a\\u0000b", "messages": [{"role": "user", "content": "x"}]}',
    "an unknown field": b'{"model": "echo", "messages": [{"role": "user", "content": "x"}], "nonsense": 1}',
    "no messages": b'{"model": "echo"}',
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/batches"])
def test_what_is_no_request_is_told_so(hasty: RunningGateway, path: str, name: str) -> None:
    answer = httpx.post(
        f"{hasty.url}{path}", content=BODIES[name], headers={"Content-Type": "application/json"}, timeout=30
    )
    assert 400 <= answer.status_code < 500, (name, answer.status_code, answer.text[:300])
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(answer.content) < 4_096, "an error does not send a body back"


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "\xff"])
def test_a_body_of_another_type_is_told_so(hasty: RunningGateway, kind: str) -> None:
    headers = {b"Content-Type": kind.encode("latin-1")}
    answer = httpx.post(f"{hasty.url}{CHAT}", content=b"hello", headers=headers)
    assert 400 <= answer.status_code < 500


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        ("application/json", b"{}", "multipart"),
        ("multipart/form-data", b"", "boundary"),
        ("multipart/form-data; boundary=b", b"--b\r\n", "cut short"),
        ("multipart/form-data; boundary=b", b"nonsense", "broken"),
        ("multipart/form-data; boundary=" + "b" * 1_000, b"", "boundary"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", "no file"),
    ],
)
def test_what_is_no_upload_is_told_so(hasty: RunningGateway, kind: str, body: bytes, told: str) -> None:
    answer = httpx.post(f"{hasty.v1}/files", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "purpose"),
        ({"purpose": "fine-tune"}, "purpose"),
        (
            {"purpose": "batch", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after.anchor",
        ),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "1"},
            "expires_after.seconds",
        ),
        ({"purpose": "batch" * 2_000}, "purpose"),
    ],
)
def test_an_upload_for_no_batch_is_refused_by_field(hasty: RunningGateway, fields: dict[str, str], param: str) -> None:
    answer = httpx.post(f"{hasty.v1}/files", files={"file": ("in.jsonl", b"{}")}, data=fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("file_id", ["file-1", "..%2F..%2Fetc%2Fpasswd", "file-" + "0" * 32, "x" * 5_000, "%00", "%ff"])
def test_no_id_leads_to_a_file_that_is_none(hasty: RunningGateway, file_id: str) -> None:
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", f"/v1/batches/{file_id}"):
        answer = httpx.get(f"{hasty.url}{path}")
        assert answer.status_code == 404, path


def test_a_gateway_without_a_folder_says_how_to_get_one(gateway: RunningGateway) -> None:
    for path in ("/v1/files", "/v1/batches"):
        answer = httpx.get(f"{gateway.url}{path}")
        assert answer.status_code == 501
        assert "--files" in answer.json()["error"]["message"]
