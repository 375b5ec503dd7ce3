"""Batches without a bulk worker: what the gateway itself does, also when it dies, comes late, or RQ forgets."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from rq.job import Job
from tokenmill.bulk.jobs.board import RunBoard, RunConflictError
from tokenmill.bulk.output import OutputFile
from tokenmill.bulk.outputs import paths_of
from tokenmill.bulk.spec import RunSpec
from tokenmill.gateway.batches.office import BatchOffice, Wish
from tokenmill.gateway.batches.record import BatchRecord
from tokenmill.gateway.shelf import FileShelf, StoredFile

from tests.support.servers import running_server
from tests.support.waiting import wait_until

OWNER = "team"
WISH = Wish(
    owner=OWNER,
    queue="default",
    endpoint="/v1/chat/completions",
    completion_window="24h",
    metadata=None,
    output_expires_after_s=None,
)

MakeOffice = Callable[[], BatchOffice]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of our own: all runs share one RQ queue."""
    with running_server() as server:
        yield server.tcp_url


@pytest.fixture
def board(url: str) -> Iterator[RunBoard]:
    with redis.Redis.from_url(url) as client:
        client.flushall()
    with RunBoard(url) as board:
        yield board


@pytest.fixture
def shelf(tmp_path: Path) -> FileShelf:
    return FileShelf(tmp_path)


@pytest.fixture
def make_office(url: str, board: RunBoard, shelf: FileShelf) -> Iterator[MakeOffice]:
    made: list[BatchOffice] = []

    def make() -> BatchOffice:
        office = BatchOffice(shelf, redis_url=url, rq_url=url, partitions=1, max_requests=10)
        made.append(office)
        return office

    yield make
    for office in made:
        office.close()


@pytest.fixture
def office(make_office: MakeOffice) -> BatchOffice:
    return make_office()


def upload(shelf: FileShelf, content: bytes) -> StoredFile:
    draft = shelf.draft()
    draft.write(content)
    return shelf.keep(draft, filename="in.jsonl", purpose="batch", owner=OWNER)


def lines(number: int) -> bytes:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    values = [{"custom_id": f"r{n}", "method": "POST", "url": WISH.endpoint, "body": body} for n in range(number)]
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def find(office: BatchOffice, batch_id: str) -> BatchRecord:
    record = office.find(batch_id, OWNER)
    assert record is not None
    return record


def begun(office: BatchOffice, shelf: FileShelf, number: int = 3) -> BatchRecord:
    made = office.create(upload(shelf, lines(number)), WISH)
    wait_until(lambda: find(office, made.batch_id).status != "validating", description="the batch has begun")
    return find(office, made.batch_id)


def answer_first(shelf: FileShelf, record: BatchRecord, board: RunBoard) -> None:
    """As a bulk worker that finished one row."""
    spec = RunSpec.from_json(json.loads(_job_args(board))[0])
    out = shelf.root / spec.out
    paths = paths_of(out, "openai")
    with OutputFile(paths.out, spec.recipe, path=paths.rows, errors_path=paths.errors) as output:
        output.note_run(spec.to_json(), {})
        source = json.loads((shelf.root / spec.input.paths[0]).read_text().splitlines()[0])
        usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
        output.append(
            {
                "custom_id": source["custom_id"],
                "row_hash": "0" * 32,
                "input": source,
                "text": "x",
                "token_ids": [1],
                "finish_reason": "stop",
                "usage": usage,  # type: ignore[dict-item]  # a JSON object, whose type mypy does not widen
            }
        )


def _job_args(board: RunBoard) -> str:
    (run,) = board.all_runs()
    job = Job.fetch(run.run_id, connection=board.queue.connection, serializer=board.queue.serializer)
    return json.dumps(job.args)


def told(shelf: FileShelf, file_id: str | None) -> list[dict[str, object]]:
    assert file_id is not None
    stored = shelf.find(file_id, OWNER)
    assert stored is not None
    return [json.loads(line) for line in shelf.content(stored).read_text().splitlines()]


def test_a_batch_is_one_run_of_the_bulk_workers(office: BatchOffice, shelf: FileShelf, board: RunBoard) -> None:
    record = begun(office, shelf)
    assert (record.status, record.counts.total, record.model) == ("in_progress", 3, "echo")
    (run,) = board.all_runs()
    assert (run.state, run.tenant) == ("queued", OWNER)
    assert not Path(run.out).is_absolute(), "below --files, wherever that is"


def test_another_gateway_begins_what_a_dead_one_had_taken_in(
    make_office: MakeOffice, shelf: FileShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = make_office()
    monkeypatch.setattr(dying, "_begin_soon", lambda batch_id: None)
    made = dying.create(upload(shelf, lines(2)), WISH)
    assert find(dying, made.batch_id).status == "validating"
    other = make_office()
    other.resume()
    wait_until(lambda: find(other, made.batch_id).status == "in_progress", description="the other one has begun it")


def test_a_run_that_rq_has_lost_is_handed_in_again(office: BatchOffice, shelf: FileShelf, board: RunBoard) -> None:
    record = begun(office, shelf)
    board.store.client.flushall()
    assert board.all_runs() == []
    assert find(office, record.batch_id).status == "in_progress"
    assert [run.state for run in board.all_runs()] == ["queued"]


def test_a_cancelled_batch_keeps_what_is_done_and_names_the_rest(
    office: BatchOffice, shelf: FileShelf, board: RunBoard
) -> None:
    record = begun(office, shelf)
    answer_first(shelf, record, board)
    office.cancel(record.batch_id)
    wait_until(lambda: find(office, record.batch_id).is_final, description="it has ended")
    ended = find(office, record.batch_id)
    assert (ended.status, tuple(ended.counts)) == ("cancelled", (3, 1, 2))
    assert [line["custom_id"] for line in told(shelf, ended.output_file_id)] == ["r0"]
    errors = told(shelf, ended.error_file_id)
    assert [line["custom_id"] for line in errors] == ["r1", "r2"]
    assert [line["error"]["code"] for line in errors] == ["batch_cancelled"] * 2  # type: ignore[index]  # JSON
    with pytest.raises(RunConflictError, match="Cannot cancel"):
        office.cancel(record.batch_id)


def test_a_batch_that_nobody_finished_in_its_window_expires(
    office: BatchOffice, shelf: FileShelf, board: RunBoard
) -> None:
    record = begun(office, shelf)
    answer_first(shelf, record, board)
    office._write(replace(record, expires_at=record.created_at - 1))
    wait_until(lambda: find(office, record.batch_id).is_final, description="it has ended")
    ended = find(office, record.batch_id)
    assert (ended.status, tuple(ended.counts)) == ("expired", (3, 1, 2))
    assert ended.expired_at is not None
    errors = told(shelf, ended.error_file_id)
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}  # type: ignore[index]  # JSON


def test_a_batch_that_is_cancelled_before_it_began_never_runs(
    office: BatchOffice, shelf: FileShelf, board: RunBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(office, "_begin_soon", lambda batch_id: None)
        made = office.create(upload(shelf, lines(1)), WISH)
        office.cancel(made.batch_id)
    wait_until(lambda: find(office, made.batch_id).is_final, description="it has ended")
    assert find(office, made.batch_id).status == "cancelled"
    assert board.all_runs() == []


def test_more_requests_than_a_batch_may_have_are_refused(office: BatchOffice, shelf: FileShelf) -> None:
    record = begun(office, shelf, 11)
    assert (record.status, [error.code for error in record.errors]) == ("failed", ["too_many_requests"])


def test_a_batch_of_somebody_else_is_not_there(office: BatchOffice, shelf: FileShelf) -> None:
    record = begun(office, shelf)
    assert office.find(record.batch_id, "other") is None
    assert office.page("other", after=None, limit=10).records == []


def test_pages_of_batches_are_read_from_the_newest(office: BatchOffice, shelf: FileShelf) -> None:
    made = [begun(office, shelf).batch_id for _ in range(3)]
    first = office.page(OWNER, after=None, limit=2)
    assert ([record.batch_id for record in first.records], first.has_more) == ([made[2], made[1]], True)
    rest = office.page(OWNER, after=made[1], limit=2)
    assert ([record.batch_id for record in rest.records], rest.has_more) == ([made[0]], False)


def test_a_file_whose_time_is_over_is_gone_with_its_content(shelf: FileShelf) -> None:
    draft = shelf.draft()
    draft.write(b"{}")
    stored = shelf.keep(draft, filename="x", purpose="batch", owner=OWNER, expires_after_s=-1)
    assert shelf.find(stored.file_id, OWNER) is None
    assert not shelf.content(stored).exists()


def test_an_upload_that_is_given_up_leaves_nothing(shelf: FileShelf) -> None:
    draft = shelf.draft()
    draft.write(b"x" * 10)
    draft.flush()
    draft.discard()
    assert list(draft.path.parent.iterdir()) == []
