"""A whole run against a queue that is a dictionary: what is done, what is done again, and what never is."""

import io
import json
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.bulk.answers import Answer
from tokenmill.bulk.execute import execute
from tokenmill.bulk.identity import Recipe, seed_of
from tokenmill.bulk.planner import OutgoingRow
from tokenmill.bulk.progress import LineView, SilentView
from tokenmill.bulk.pulse import WorkerTold
from tokenmill.bulk.report import RunReport
from tokenmill.bulk.rows import Fields, InputError
from tokenmill.bulk.run import SendStatus
from tokenmill.bulk.spec import InputSpec, Order, RunSpec
from tokenmill.bulk.window import MIN_ROWS
from tokenmill.wire.errors import UnavailableError
from tokenmill.wire.keys import Lane
from tokenmill.wire.messages import Request, SamplingParams


class PowerCutError(Exception):
    """The process dies here."""


class FakeQueue:
    """Answers in random order; may fail some rows, be busy, or raise an error after a number of answers."""

    def __init__(self, *, seed: int = 0, answers_before: int | None = None, error: BaseException | None = None) -> None:
        self.random = random.Random(seed)
        self.sent: list[OutgoingRow] = []
        self.waiting: list[OutgoingRow] = []
        self.forgotten: list[str] = []
        self.spent_ids: set[str] = set()
        self.failing: Callable[[OutgoingRow], bool] = lambda row: False
        self.num_busy_answers = 0
        self.max_waiting = 0
        self.answers_left = answers_before
        self.error = error or PowerCutError()

    def send(self, rows: Sequence[OutgoingRow]) -> list[SendStatus]:
        return [self._send(row) for row in rows]

    def _send(self, row: OutgoingRow) -> SendStatus:
        if row.request_id in self.spent_ids:
            return "spent"
        if self.num_busy_answers > 0:
            self.num_busy_answers -= 1
            return "busy"
        self.sent.append(row)
        self.waiting.append(row)
        self.max_waiting = max(self.max_waiting, len(self.waiting))
        return "taken"

    def wait(self, timeout_s: float) -> list[Answer]:
        if self.answers_left == 0:
            raise self.error
        self.random.shuffle(self.waiting)
        num_answers = self.random.randint(0, len(self.waiting))
        if self.answers_left is not None:
            num_answers = min(num_answers, self.answers_left)
            self.answers_left -= num_answers
        ready, self.waiting = self.waiting[:num_answers], self.waiting[num_answers:]
        return [self._answer(row) for row in ready]

    def _answer(self, row: OutgoingRow) -> Answer:
        if self.failing(row):
            return Answer(request_id=row.request_id, error=("invalid_request", "too long"))
        return Answer(
            request_id=row.request_id,
            text=f"answer to {row.row_hash}",
            token_ids=(1, 2),
            finish_reason="length",
            prompt_tokens=3,
            completion_tokens=2,
        )

    def workers(self) -> dict[str, WorkerTold]:
        return {"worker-1": WorkerTold(num_slots=4)}

    def abandon(self) -> None:
        self.waiting.clear()

    def forget(self, request_ids: Sequence[str]) -> None:
        self.forgotten.extend(request_ids)


def write_rows(folder: Path, rows: Sequence[Fields | str]) -> Path:
    path = folder / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def run(
    path: Path,
    queue: FakeQueue | None,
    *,
    limit: int | None = None,
    window: int | None = 4,
    order: Order = "input",
    recipe: Recipe | None = None,
    samples: int = 1,
    max_errors: int | None = None,
) -> RunReport:
    """One run into `out.jsonl` beside the input; `queue` None: a run that must not need one."""
    recipe = recipe or Recipe(column="q")

    def connect(run_id: str) -> AbstractContextManager[FakeQueue]:
        assert queue is not None, "connected although nothing was missing"
        return nullcontext(queue)

    spec = RunSpec(
        input=InputSpec(paths=(str(path),)),
        out=str(path.with_name("out.jsonl")),
        recipe=recipe,
        limit=limit,
        window=window,
        order=order,
        samples=samples,
        max_errors=max_errors,
    )
    return execute(spec, queue_factory=connect, view=SilentView())


def sampling_of(row: OutgoingRow) -> SamplingParams:
    return Request.decode(row.submission.body).sampling


def lines_of(path: Path) -> list[Fields]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def inputs_of(path: Path) -> list[object]:
    return [line["input"] for line in lines_of(path.with_name("out.jsonl"))]


def questions(*names: object) -> list[Fields]:
    return [{"q": str(name)} for name in names]


def test_every_row_is_written_once_with_all_that_a_reader_needs(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"id": 7, "q": "naïve 🙂"}])
    queue = FakeQueue()
    report = run(path, queue)
    (line,) = lines_of(tmp_path / "out.jsonl")
    name = line["row_hash"]
    assert line == {
        "custom_id": "7",
        "row_hash": name,
        "input": {"id": 7, "q": "naïve 🙂"},
        "text": f"answer to {name}",
        "token_ids": [1, 2],
        "finish_reason": "length",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    assert (report.num_rows, report.num_done, report.num_failed) == (1, 1, 0)
    assert report.finish_reasons == {"length": 1}


def test_a_request_carries_the_row_and_a_seed_of_its_own(tmp_path: Path) -> None:
    queue = FakeQueue()
    run(write_rows(tmp_path, questions("a", "b")), queue)
    for row in queue.sent:
        assert row.request_id == f"{row.submission.group}:{row.row_hash}"
        assert sampling_of(row).seed == seed_of(row.row_hash)
        assert row.submission.lane == Lane.BULK


def test_a_seed_that_is_asked_for_is_every_rows_seed(tmp_path: Path) -> None:
    queue = FakeQueue()
    run(write_rows(tmp_path, questions("a", "b")), queue, recipe=Recipe(column="q", sampling={"seed": 5}))
    assert [sampling_of(row).seed for row in queue.sent] == [5, 5]


def test_a_second_run_needs_no_queue_and_changes_nothing(tmp_path: Path) -> None:
    path = write_rows(tmp_path, questions(*range(10)))
    run(path, FakeQueue())
    before = (tmp_path / "out.jsonl").read_bytes()
    report = run(path, None)
    assert (report.num_skipped, report.num_done) == (10, 0)
    assert (tmp_path / "out.jsonl").read_bytes() == before


@settings(max_examples=50, deadline=None)  # a sync takes what the disk takes
@given(seed=st.integers(0, 2**16), cut=st.integers(0, 12), window=st.integers(1, 20))
def test_a_run_killed_anywhere_is_finished_by_the_next_without_repeating_a_row(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cut: int, window: int
) -> None:
    path = write_rows(tmp_path_factory.mktemp("run"), [*questions(*range(10)), *questions(3, 3)])
    with_cut = FakeQueue(seed=seed, answers_before=cut)
    try:
        run(path, with_cut, window=window)
    except PowerCutError:
        assert len(inputs_of(path)) == cut
    queue = FakeQueue(seed=seed + 1)
    run(path, queue, window=window)
    assert inputs_of(path) == [*questions(*range(10)), *questions(3, 3)]
    assert len(queue.sent) == 12 - min(cut, 12)


def test_the_window_bounds_the_rows_in_flight(tmp_path: Path) -> None:
    queue = FakeQueue()
    run(write_rows(tmp_path, questions(*range(50))), queue, window=7)
    assert queue.max_waiting == 7


def test_the_output_ends_in_the_order_of_the_input(tmp_path: Path) -> None:
    path = write_rows(tmp_path, questions(*range(40)))
    run(path, FakeQueue(seed=1), window=40)
    assert inputs_of(path) == questions(*range(40))


def test_completion_order_is_kept_when_asked_for(tmp_path: Path) -> None:
    path = write_rows(tmp_path, questions(*range(40)))
    run(path, FakeQueue(seed=1), window=40, order="completion")
    assert inputs_of(path) != questions(*range(40))
    run(path, None, order="input")
    assert inputs_of(path) == questions(*range(40))


def test_after_the_input_is_edited_only_new_rows_are_done(tmp_path: Path) -> None:
    run(write_rows(tmp_path, questions("a", "b", "c", "d")), FakeQueue())
    path = write_rows(tmp_path, questions("d", "new", "a", "a", "c"))
    queue = FakeQueue()
    run(path, queue)
    assert sorted(str(row.row.fields["q"]) for row in queue.sent) == ["a", "new"]
    assert inputs_of(path) == questions("d", "new", "a", "a", "c", "b")


def test_limit_counts_rows_of_the_input_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    path = write_rows(tmp_path, questions(*range(10)))
    assert run(path, FakeQueue(), limit=4).num_done == 4
    report = run(path, FakeQueue(), limit=6)
    assert (report.num_rows, report.num_skipped, report.num_done) == (6, 4, 2)


def test_bad_rows_land_in_the_errors_file_with_their_reason_and_the_rest_is_done(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path,
        [
            {"q": "good"},
            "{oops}",
            {"p": "no such column"},
            {"q": "half a pair \ud800"},
            '{"q": 1e999}',
            {"q": "too long"},
            {"q": "good too"},
        ],
    )
    queue = FakeQueue()
    queue.failing = lambda row: row.row.fields["q"] == "too long"
    report = run(path, queue)
    errors = {line["row"]: line["error"] for line in lines_of(tmp_path / "out.errors.jsonl")}
    codes = {row: error["code"] for row, error in errors.items() if isinstance(error, dict)}
    assert codes == {2: "bad_row", 3: "bad_prompt", 4: "bad_row", 5: "bad_row", 6: "invalid_request"}
    assert inputs_of(path) == questions("good", "good too")
    assert (report.num_done, report.num_failed) == (2, 5)
    assert report.errors == str(tmp_path / "out.errors.jsonl")


def test_messages_that_are_no_messages_fail_their_row_only(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"messages": [{"role": "user"}]}, {"messages": [{"role": "user", "content": "hi"}]}])
    report = run(path, FakeQueue(), recipe=Recipe())
    assert (report.num_done, report.num_failed) == (1, 1)


def test_failed_rows_are_tried_again_by_the_next_run(tmp_path: Path) -> None:
    path = write_rows(tmp_path, questions("a", "b"))
    failing = FakeQueue()
    failing.failing = lambda row: row.row.fields["q"] == "b"
    run(path, failing)
    queue = FakeQueue()
    queue.spent_ids = {row.request_id for row in failing.sent if row.row.fields["q"] == "b"}
    assert run(path, queue).num_done == 1
    assert [row.request_id.partition("~")[2] for row in queue.sent] == ["1"]
    assert not (tmp_path / "out.errors.jsonl").exists()
    assert inputs_of(path) == questions("a", "b")


def test_a_busy_queue_gets_the_rows_later(tmp_path: Path) -> None:
    path = write_rows(tmp_path, questions(*range(10)))
    queue = FakeQueue()
    queue.num_busy_answers = 7
    assert run(path, queue).num_done == 10
    assert len(queue.sent) == 10


def test_rows_are_forgotten_by_the_server_once_they_are_on_disk(tmp_path: Path) -> None:
    queue = FakeQueue()
    run(write_rows(tmp_path, questions(*range(10))), queue)
    assert sorted(queue.forgotten) == sorted(row.request_id for row in queue.sent)


def test_an_empty_input_is_complete(tmp_path: Path) -> None:
    report = run(write_rows(tmp_path, []), None)
    assert (report.num_rows, report.num_done) == (0, 0)


def test_nothing_but_manifest_and_reports_stays_beside_the_output(tmp_path: Path) -> None:
    run(write_rows(tmp_path, questions("a")), FakeQueue())
    left = {path.name for path in (tmp_path / "out.jsonl.tokenmill").rglob("*") if path.is_file()}
    assert left == {"lock", "manifest.json", "report.json", "report.svg", "report.txt"}


def test_samples_are_completions_of_their_own_with_their_own_seeds(tmp_path: Path) -> None:
    path, queue = write_rows(tmp_path, questions("a", "b")), FakeQueue()
    report = run(path, queue, samples=3)
    assert (report.num_rows, report.num_done) == (6, 6)
    lines = lines_of(tmp_path / "out.jsonl")
    assert [line["sample"] for line in lines] == [0, 1, 2] * 2
    assert inputs_of(path) == questions("a", "a", "a", "b", "b", "b")
    assert len({line["row_hash"] for line in lines}) == len({sampling_of(row).seed for row in queue.sent}) == 6


def test_samples_under_one_seed_differ_and_the_first_has_it(tmp_path: Path) -> None:
    queue = FakeQueue()
    run(write_rows(tmp_path, questions("a")), queue, samples=3, recipe=Recipe(column="q", sampling={"seed": 5}))
    seeds = {row.sample: sampling_of(row).seed for row in queue.sent}
    assert seeds[0] == 5
    assert len(set(seeds.values())) == 3


def test_asking_for_more_samples_adds_only_those(tmp_path: Path) -> None:
    path, queue = write_rows(tmp_path, questions("a", "b")), FakeQueue()
    run(path, FakeQueue())
    report = run(path, queue, samples=3)
    assert (report.num_skipped, report.num_done) == (2, 4)
    assert sorted(row.sample for row in queue.sent) == [1, 1, 2, 2]


def test_an_id_column_says_who_a_row_is(tmp_path: Path) -> None:
    recipe = Recipe(column="q", id_column="id")
    run(write_rows(tmp_path, [{"id": 1, "q": "a"}, {"id": 2, "q": "b"}]), FakeQueue(), recipe=recipe)
    path = write_rows(tmp_path, [{"id": 2, "q": "edited"}, {"id": 3, "q": "new"}, {"q": "nobody"}])
    queue = FakeQueue()
    report = run(path, queue, recipe=recipe)
    assert [row.row.fields["q"] for row in queue.sent] == ["new"]
    assert (report.num_skipped, report.num_failed) == (1, 1)
    (error,) = lines_of(tmp_path / "out.errors.jsonl")
    assert "no id: the column 'id'" in str(error["error"])


def test_a_run_ends_when_too_many_rows_have_failed_and_goes_on_later(tmp_path: Path) -> None:
    path, queue = write_rows(tmp_path, questions(*range(40))), FakeQueue()
    queue.failing = lambda row: int(str(row.row.fields["q"])) % 2 == 0
    report = run(path, queue, max_errors=3)
    assert (report.ending, report.num_failed) == ("too_many_errors", 4)
    assert len(lines_of(tmp_path / "out.errors.jsonl")) == 4
    assert not queue.waiting, "what was in flight is given up"
    later = run(path, FakeQueue(), max_errors=3)
    assert (later.ending, later.num_done + later.num_skipped) == ("complete", 40)


def test_bad_rows_alone_can_be_too_many_and_then_no_server_is_needed(tmp_path: Path) -> None:
    path = write_rows(tmp_path, ["{oops"] * 5)
    assert run(path, None, max_errors=0).ending == "too_many_errors"


def test_a_window_of_its_own_follows_the_workers(tmp_path: Path) -> None:
    queue = FakeQueue()
    run(write_rows(tmp_path, questions(*range(200))), queue, window=None)
    assert queue.max_waiting == MIN_ROWS


def test_the_reports_lie_beside_the_output_and_stay_when_nothing_is_left_to_do(tmp_path: Path) -> None:
    path = write_rows(tmp_path, questions("a", "b"))
    run(path, FakeQueue())
    folder = tmp_path / "out.jsonl.tokenmill"
    told = json.loads((folder / "report.json").read_text())
    assert (told["num_done"], told["ending"]) == (2, "complete")
    assert (folder / "report.svg").read_text().startswith("<svg")
    run(path, None)
    assert json.loads((folder / "report.json").read_text()) == told


@pytest.mark.parametrize(
    ("error", "ending"), [(KeyboardInterrupt(), "interrupted"), (UnavailableError("away"), "no_server")]
)
def test_a_run_that_is_interrupted_leaves_a_report_that_says_so(
    tmp_path: Path, error: BaseException, ending: str
) -> None:
    path = write_rows(tmp_path, questions(*range(5)))
    with pytest.raises(type(error)):
        run(path, FakeQueue(answers_before=2, error=error))
    told = json.loads((tmp_path / "out.jsonl.tokenmill" / "report.json").read_text())
    assert (told["ending"], told["num_done"]) == (ending, 2)
    assert "3 missing" in (tmp_path / "out.jsonl.tokenmill" / "report.txt").read_text()


def test_a_run_that_has_too_many_bad_rows_before_it_sends_one_leaves_a_report(tmp_path: Path) -> None:
    run(write_rows(tmp_path, [{"other": n} for n in range(3)]), None, max_errors=1)
    text = (tmp_path / "out.jsonl.tokenmill" / "report.txt").read_text()
    assert "too many errors" in text
    assert "(the first: no column 'q'; this row has 'other')" in text


def test_an_input_that_is_not_there_leaves_no_output(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        run(tmp_path / "missing.jsonl", None)
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_changed_is_mentioned(tmp_path: Path) -> None:
    stream = io.StringIO()
    for rows in (questions("a"), questions("a"), questions("a", "b")):
        spec = RunSpec(input=InputSpec(paths=(str(write_rows(tmp_path, rows)),)), out=str(tmp_path / "out.jsonl"))
        spec = replace(spec, recipe=Recipe(column="q"))
        execute(spec, queue_factory=lambda run_id: nullcontext(FakeQueue()), view=LineView(stream))
    assert stream.getvalue().count("the input has changed since the last run") == 1


def test_a_run_that_is_told_to_stop_says_so_and_the_next_one_goes_on(tmp_path: Path) -> None:
    path = write_rows(tmp_path, questions(*range(20)))
    asked = iter([False, False, True])
    spec = RunSpec(input=InputSpec(paths=(str(path),)), out=str(tmp_path / "out.jsonl"), recipe=Recipe(column="q"))
    queue = FakeQueue()
    report = execute(
        replace(spec, window=2),
        queue_factory=lambda run_id: nullcontext(queue),
        view=SilentView(),
        should_stop=lambda: next(asked),
    )
    assert report.is_stopped
    assert report.num_done < 20
    assert run(path, FakeQueue()).num_skipped == report.num_done
