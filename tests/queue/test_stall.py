"""A hung engine is told from a slow one and from an idle one."""

from dataclasses import replace

from tokenmill_worker.engine.api import EngineStatistics
from tokenmill_worker.queue.stall import StallWatch

IDLE = EngineStatistics(
    num_waiting=0,
    num_running=0,
    num_steps=0,
    num_free_pages=1,
    num_pages=1,
    num_prefill_tokens=0,
    num_decode_tokens=0,
    num_drawn_tokens=0,
    num_cached_tokens=0,
    num_preemptions=0,
    num_finished=0,
)


class Scene:
    """An engine and a clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.engine = IDLE
        self.watch = StallWatch(lambda: self.engine, timeout_s=10.0, now_s=lambda: self.now_s)

    def is_stalled_at(
        self,
        now_s: float,
        *,
        num_running: int | None = None,
        num_waiting: int | None = None,
        num_steps: int | None = None,
    ) -> bool:
        self.now_s = now_s
        seen = self.engine
        self.engine = replace(
            seen,
            num_running=seen.num_running if num_running is None else num_running,
            num_waiting=seen.num_waiting if num_waiting is None else num_waiting,
            num_steps=seen.num_steps if num_steps is None else num_steps,
        )
        return self.watch.is_stalled()


def test_an_engine_that_has_work_and_makes_no_step_is_stalled() -> None:
    scene = Scene()
    assert not scene.is_stalled_at(1.0, num_running=1, num_steps=5)
    assert not scene.is_stalled_at(11.0)
    assert scene.is_stalled_at(11.5)


def test_a_slow_engine_is_not_stalled() -> None:
    scene = Scene()
    assert not any(scene.is_stalled_at(9.0 * step, num_running=1, num_steps=step) for step in range(10))


def test_an_idle_engine_is_not_stalled_and_gets_its_time_when_work_comes() -> None:
    scene = Scene()
    assert not scene.is_stalled_at(1000.0)
    assert not scene.is_stalled_at(1009.0, num_waiting=1)
    assert not scene.is_stalled_at(1019.0)
    assert scene.is_stalled_at(1019.5)


def test_a_stalled_engine_that_moves_again_is_trusted_again() -> None:
    scene = Scene()
    scene.is_stalled_at(0.0, num_running=1)
    assert scene.is_stalled_at(20.0)
    assert not scene.is_stalled_at(21.0, num_steps=1)
