"""Files and batches as OpenAI's own client uses them: a real gateway, a bulk worker, a worker of the echo model."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from tests.e2e.commands import started
from tests.gateway.running import RunningGateway, running_gateway
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def gateway_with_files(redis_url: str, echo_queue: str, files: Path) -> Iterator[RunningGateway]:
    with (
        running_gateway(redis_url=redis_url, queue=echo_queue, files=files) as running,
        started("bulk", "worker", "--redis", redis_url, "--files", files, "--lease", "2s"),
    ):
        yield running


@pytest.fixture
def client(gateway_with_files: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway_with_files.v1, api_key="none") as client:
        yield client


def line(number: int, **changes: object) -> dict[str, object]:
    body = {"model": "echo", "messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": 8}
    value = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return {**value, **changes}


def lines_of(values: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def ended(client: openai.OpenAI, batch_id: str) -> openai.types.Batch:
    def is_over() -> bool:
        return client.batches.retrieve(batch_id).status in ("completed", "failed", "expired", "cancelled")

    wait_until(is_over, description=f"{batch_id} has ended", timeout=60)
    return client.batches.retrieve(batch_id)


def test_a_batch_from_upload_to_download(client: openai.OpenAI) -> None:
    bad = line(99, body={"model": "echo", "messages": [], "tools": []})
    source = client.files.create(file=("in.jsonl", lines_of([line(1), line(2), bad])), purpose="batch")
    batch = client.batches.create(
        input_file_id=source.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"job": "nightly"},
    )
    assert batch.status == "validating"
    assert client.files.delete(source.id).deleted, "the batch has a name of its own for it"
    done = ended(client, batch.id)
    assert done.status == "completed", done
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (3, 2, 1)
    assert (done.metadata, done.model, done.errors) == ({"job": "nightly"}, "echo", None)
    assert done.usage is not None
    assert done.usage.output_tokens == 16
    assert done.output_file_id is not None
    assert done.error_file_id is not None
    answers = [json.loads(text) for text in client.files.content(done.output_file_id).text.splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["row-1", "row-2"]
    for answer in answers:
        openai.types.chat.ChatCompletion.model_validate(answer["response"]["body"])
    (failed,) = [json.loads(text) for text in client.files.content(done.error_file_id).text.splitlines()]
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("row-99", 400)


def test_a_file_is_kept_shown_and_deleted(client: openai.OpenAI) -> None:
    content = lines_of([line(1)])
    kept = client.files.create(file=("../../räume.jsonl", content), purpose="batch")
    assert (kept.bytes, kept.filename, kept.purpose, kept.status) == (len(content), "räume.jsonl", "batch", "processed")
    assert client.files.retrieve(kept.id) == kept
    assert client.files.content(kept.id).content == content
    assert kept.id in [each.id for each in client.files.list(purpose="batch")]
    client.files.delete(kept.id)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(kept.id)


def test_lists_are_read_page_by_page(client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{n}.jsonl", lines_of([line(n)])), purpose="batch").id for n in range(3)]
    first = client.files.list(limit=2, order="desc")
    assert [each.id for each in first.data] == [made[2], made[1]]
    assert first.has_next_page()
    assert made[0] in [each.id for each in first.get_next_page().data]


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([line(1), line(1)], "duplicate_custom_id"),
        ([line(1, url="/v1/completions")], "mismatched_url"),
        ([line(1), line(2, body={"model": "other", "messages": []})], "mismatched_model"),
        ([line(1, body={"model": "gpt-9", "messages": []})], "model_not_found"),
        ([{"custom_id": "x"}], "missing_required_parameter"),
    ],
)
def test_a_batch_with_a_bad_line_fails_and_says_which(
    client: openai.OpenAI, values: list[dict[str, object]], code: str
) -> None:
    source = client.files.create(file=("in.jsonl", lines_of(values)), purpose="batch")
    batch = client.batches.create(input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h")
    failed = ended(client, batch.id)
    assert failed.status == "failed"
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [error.code for error in failed.errors.data] == [code]
    with pytest.raises(openai.ConflictError, match="Cannot cancel"):
        client.batches.cancel(batch.id)


def test_a_gateway_that_is_killed_takes_no_batch_with_it(
    redis_url: str, echo_queue: str, files: Path, client: openai.OpenAI
) -> None:
    port = free_port()
    options = ("--redis", redis_url, "--queue", echo_queue, "--files", files, "--port", port)
    with started("gateway", *options) as dying:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_answering(url), description="the gateway answers", timeout=30)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as doomed:
            source = doomed.files.create(file=("in.jsonl", lines_of([line(n) for n in range(50)])), purpose="batch")
            batch = doomed.batches.create(
                input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        dying.kill()
        dying.wait()
    assert client.files.content(source.id).content.count(b"\n") == 50
    done = ended(client, batch.id)
    assert (done.status, done.request_counts and done.request_counts.completed) == ("completed", 50)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_answering(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False
