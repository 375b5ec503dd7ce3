"""Who wants to hear of a worker's steps and of its requests' ends. Nobody does unless asked to, at no cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenmill_worker.engine.api import TokenEvent

if TYPE_CHECKING:
    from tokenmill_worker.engine.engine import Engine
    from tokenmill_worker.queue.outbox import Ending

StepWatch = Callable[["Engine", Sequence[TokenEvent], float], None]
EndWatch = Callable[["Ending"], None]


@dataclass(frozen=True, slots=True)
class Watch:
    """`stepped`: on the engine's thread after each call of `step`, with its events and when it began
    (time.perf_counter); what it costs, every step costs. `ended`: on a publisher's thread, as each last word is with
    the server. Neither may raise.
    """

    stepped: tuple[StepWatch, ...] = ()
    ended: tuple[EndWatch, ...] = ()


NOBODY = Watch()
