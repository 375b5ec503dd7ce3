"""The picture of the batch: what it shows of joins, prefills, draws and ends, and that it is drawn only on demand."""

from tokenmill.wire.keys import WATCH_TTL_MS
from tokenmill.wire.messages import BatchPicture, RowBar
from tokenmill_worker.engine import Engine, EngineConfig
from tokenmill_worker.engine.api import EngineRequest, SamplingParams
from tokenmill_worker.painter import MOST_BARS, NUM_STEPS, Painter

from tests.queue.harness import Bench, running_worker
from tests.support.waiting import wait_until

BUDGET = 16  # tokens of a step: a prompt of 40 is prefilled in three


def watched_engine(*, num_rows: int = 4, is_watched: bool = True) -> tuple[Engine, Painter]:
    config = EngineConfig(model="echo", max_num_seqs=num_rows, max_num_batched_tokens=BUDGET)
    engine, painter = Engine(config), Painter(num_rows, BUDGET)
    engine.step_log = painter.look(is_watched)
    return engine, painter


def add(engine: Engine, request_id: str, *, num_prompt: int = 3, max_tokens: int = 4, n: int = 1) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, n=n)
    engine.add_request(EngineRequest(request_id=request_id, prompt_token_ids=[65] * num_prompt, params=params))


def run(engine: Engine, steps: int = 1_000) -> None:
    for _ in range(steps):
        if not engine.has_work():
            return
        engine.step()


def bar_of(painter: Painter, request_id: str) -> RowBar:
    (bar,) = [bar for bar in painter.picture().bars if bar.request_id == request_id]
    return bar


def test_a_row_is_seen_joining_prefilling_in_chunks_drawing_and_ending() -> None:
    engine, painter = watched_engine()
    add(engine, "a", num_prompt=40, max_tokens=5)
    run(engine)
    bar = bar_of(painter, "a")
    assert bar.prefill == ((1, 16), (2, 16), (3, 8))
    assert (bar.first, bar.decode_from, bar.last, bar.finish_reason) == (1, 4, 7, "length")
    assert (bar.num_prompt, bar.num_done, bar.limit) == (40, 44, 45)


def test_a_freed_row_is_the_next_ones_place_at_once() -> None:
    engine, painter = watched_engine(num_rows=1)
    add(engine, "first", max_tokens=3)
    add(engine, "second", max_tokens=3)
    run(engine)
    first, second = bar_of(painter, "first"), bar_of(painter, "second")
    assert first.row == second.row
    assert second.first == first.last + 1


def test_every_step_tells_its_tokens_by_kind() -> None:
    engine, painter = watched_engine()
    add(engine, "a", max_tokens=3)
    run(engine, 1)
    add(engine, "b", num_prompt=5, max_tokens=3)
    run(engine)
    shapes = [(shape.num_prefill_tokens, shape.num_decode_tokens) for shape in painter.picture().steps]
    assert shapes == [(3, 0), (5, 1), (0, 2), (0, 1)]


def test_what_joined_before_anybody_looked_is_shown_from_then_on() -> None:
    engine, painter = watched_engine(is_watched=False)
    add(engine, "a", num_prompt=3, max_tokens=10)
    run(engine, 4)
    engine.step_log = painter.look(True)
    run(engine, 2)
    bar = bar_of(painter, "a")
    assert (bar.first, bar.last, bar.decode_from, bar.prefill, bar.finish_reason) == (5, 6, 5, (), None)


def test_all_choices_of_a_request_have_bars_of_their_own() -> None:
    engine, painter = watched_engine()
    add(engine, "a", n=3)
    run(engine)
    assert sorted(bar.choice for bar in painter.picture().bars) == [0, 1, 2]


def test_a_cancelled_row_says_so() -> None:
    engine, painter = watched_engine()
    add(engine, "a", max_tokens=100)
    run(engine, 3)
    engine.cancel("a")
    run(engine)
    assert bar_of(painter, "a").finish_reason == "cancelled"


def test_a_preempted_row_leaves_and_comes_back_as_a_bar_of_its_own() -> None:
    engine, painter = watched_engine()
    add(engine, "a", max_tokens=10)
    run(engine, 3)
    engine._scheduler.preempt(engine._scheduler.running[0])
    run(engine)
    before, after = painter.picture().bars
    assert (before.last, before.finish_reason) == (3, None)
    assert (after.first, after.prefill, after.finish_reason) == (4, ((4, 6),), "length")


def test_a_picture_stays_small_however_long_and_fast_the_engine_runs() -> None:
    engine, painter = watched_engine()
    for number in range(2_000):
        add(engine, f"q-{number}", max_tokens=2)
        run(engine, 2)
        if number % 100 == 0:
            painter.picture()
    picture = painter.picture()
    assert len(picture.steps) <= NUM_STEPS
    assert len(picture.bars) <= MOST_BARS + 4
    assert all(bar.last > picture.step - NUM_STEPS for bar in picture.bars)


def test_a_picture_survives_its_journey() -> None:
    engine, painter = watched_engine()
    add(engine, "a", num_prompt=40)
    run(engine)
    picture = painter.picture()
    assert BatchPicture.decode(picture.encode()) == picture


def test_while_nobody_looks_the_engine_keeps_nothing_and_the_worker_writes_nothing(bench: Bench) -> None:
    with running_worker(bench) as running:
        bench.submit()
        bench.wait_result()
        assert running.engine.step_log is None
        assert not list(bench.server.scan_iter(f"{bench.keys.tag}pic:*"))


def test_a_worker_draws_while_somebody_looks_and_stops_when_they_are_gone(bench: Bench) -> None:
    with running_worker(bench) as running:
        wait_until(bench.workers, description="the worker is registered")
        (name,) = bench.workers()
        bench.server.set(bench.keys.watch, 1, px=WATCH_TTL_MS)
        wait_until(lambda: running.engine.step_log is not None, description="the worker saw that somebody looks")
        bench.submit("q-1")
        bench.wait_result("q-1")
        wait_until(lambda: picture_of(bench, name).bars, description="the picture shows the request")
        assert [bar.request_id for bar in picture_of(bench, name).bars] == ["q-1"]
        bench.server.delete(bench.keys.watch)
        wait_until(lambda: running.engine.step_log is None, description="the worker saw that nobody looks")


def picture_of(bench: Bench, worker: str) -> BatchPicture:
    key = bench.keys.picture(worker)
    wait_until(lambda: bench.server.exists(key), description="there is a picture")
    return BatchPicture.decode(bench.server.get(key))


def test_a_worker_tells_first_token_times_and_failures(bench: Bench) -> None:
    with running_worker(bench):
        bench.submit("good")
        bench.submit("bad", prompt=[10**9])
        bench.wait_result("good")
        bench.wait_result("bad")
        wait_until(lambda: info_of(bench).get("num_failed") == "1", description="the failure is told")
        assert float(info_of(bench)["first_token_p50_ms"]) > 0
        assert '"bad"' in info_of(bench)["recent_failures"]


def info_of(bench: Bench) -> dict[str, str]:
    (worker,) = bench.statistics().workers
    return worker.info
