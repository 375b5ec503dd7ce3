"""What a look at the fleet asks of the server, and how the answers become one snapshot. Knows no connection."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tokenmill.fleet.rates import RateBook, total
from tokenmill.fleet.values import (
    LANE_NAMES,
    FailureLook,
    FleetSnapshot,
    LaneLook,
    LetterLook,
    Rates,
    RunLook,
    Totals,
    WorkerLook,
)
from tokenmill.wire.errors import DecodeError
from tokenmill.wire.keys import Lane
from tokenmill.wire.messages import BatchPicture
from tokenmill.wire.store import Procedure, QueueStatistics, Steps, Transitions, WorkerStatistics
from tokenmill.wire.store.letters import DeadLetter, read_letters, server_time

MOST_LETTERS = 20  # the newest: what is wrong now
MOST_FAILURES = 20

_WHOLE = (*(name for name in Totals.__dataclass_fields__ if name != "told_s"),)


class PartLook(NamedTuple):
    """One partition's answers."""

    at_ms: int
    statistics: QueueStatistics
    letters: Sequence[DeadLetter]


def look_at(transitions: Transitions) -> Procedure[PartLook]:
    return Procedure(lambda: _look(transitions))


def _look(transitions: Transitions) -> Steps[PartLook]:
    statistics = yield from transitions.statistics().steps()
    letters = yield from read_letters(transitions.keys, limit=MOST_LETTERS).steps()
    at_ms = yield from server_time().steps()
    return PartLook(at_ms, statistics, letters)


def decoded(pictures: Mapping[str, bytes]) -> dict[str, BatchPicture]:
    """What is no picture of this version is left out: a worker of another one."""
    found = {}
    for name, raw in pictures.items():
        try:
            found[name] = BatchPicture.decode(raw)
        except DecodeError:
            continue
    return found


class Gatherer:
    """Makes snapshots of parts; remembers enough of the ones before to tell rates."""

    def __init__(self) -> None:
        self._book = RateBook()

    def snapshot(self, parts: Sequence[PartLook], runs: Sequence[RunLook] | None) -> FleetSnapshot:
        together = QueueStatistics.sum([part.statistics for part in parts])
        workers = self._workers(together.workers, parts[0].statistics.workers)
        letters = sorted((one for part in parts for one in part.letters), key=lambda one: one.sort_key, reverse=True)
        return FleetSnapshot(
            at_ms=parts[0].at_ms,
            queue=together.queue,
            partitions=together.partitions,
            depth=together.depth,
            in_flight=together.in_flight,
            oldest_age_s=together.oldest_age_s,
            scheduled=together.scheduled,
            lanes=_lanes(together),
            workers=workers,
            rates=total((worker.rates, worker.totals) for worker in workers),
            first_token_p50_ms=_worst(worker.first_token_p50_ms for worker in workers),
            first_token_p95_ms=_worst(worker.first_token_p95_ms for worker in workers),
            num_dead_letters=together.dead_letters,
            dead_letters=tuple(_letter(one, len(parts)) for one in letters[:MOST_LETTERS]),
            failures=_failures(together.workers),
            runs=None if runs is None else tuple(runs),
        )

    def _workers(
        self, workers: Sequence[WorkerStatistics], in_first: Sequence[WorkerStatistics]
    ) -> tuple[WorkerLook, ...]:
        """By name. Pictures are kept under the names that workers have in partition 0."""
        names = {worker.process: worker.name for worker in in_first}
        looks = [self._worker(worker, names.get(worker.process)) for worker in workers]
        self._book.forget_all_but(look.name for look in looks)
        return tuple(sorted(looks, key=lambda look: look.name))

    def _worker(self, worker: WorkerStatistics, picture_name: str | None) -> WorkerLook:
        info = worker.info
        totals = Totals(told_s=_number(info, "told_s") or 0.0, **{name: _integer(info, name) for name in _WHOLE})
        return WorkerLook(
            name=worker.process,
            picture_name=picture_name,
            lease_left_s=round(worker.lease_left_s, 1),
            model=info.get("served_model_name") or info.get("model", ""),
            device=info.get("device", ""),
            dtype=info.get("dtype", ""),
            host=info.get("host", ""),
            num_running=_integer(info, "num_running"),
            num_waiting=_integer(info, "num_waiting"),
            max_num_seqs=_integer(info, "max_num_seqs"),
            num_pages=_integer(info, "num_pages"),
            num_free_pages=_integer(info, "num_free_pages"),
            first_token_p50_ms=_number(info, "first_token_p50_ms"),
            first_token_p95_ms=_number(info, "first_token_p95_ms"),
            totals=totals,
            rates=self._book.note(worker.process, totals) if totals.told_s else Rates(),
        )


def _lanes(statistics: QueueStatistics) -> tuple[LaneLook, ...]:
    return tuple(
        LaneLook(
            name=LANE_NAMES[Lane(lane)],
            backlog=its.backlog,
            in_flight=its.in_flight,
            oldest_age_s=its.oldest_age_s,
        )
        for lane, its in statistics.lanes.items()
    )


def _letter(letter: DeadLetter, num_partitions: int) -> LetterLook:
    name = letter.letter_id if num_partitions == 1 else f"{letter.partition}/{letter.letter_id}"
    return LetterLook(
        name=name,
        at_ms=letter.time_ms,
        request_id=letter.request_id,
        lane=LANE_NAMES[Lane(letter.lane)] if letter.lane in {lane.value for lane in Lane} else letter.lane,
        reason=letter.reason,
        num_bytes=letter.num_bytes,
    )


def _failures(workers: Sequence[WorkerStatistics]) -> tuple[FailureLook, ...]:
    """The newest first."""
    found = [
        FailureLook(at_ms=int(at_ms), request_id=str(request_id), code=str(code), worker=worker.process)
        for worker in workers
        for at_ms, request_id, code in _listed(worker.info.get("recent_failures", "[]"))
    ]
    return tuple(sorted(found, key=lambda one: one.at_ms, reverse=True)[:MOST_FAILURES])


def _listed(text: str) -> list[Any]:
    try:
        listed = json.loads(text)
    except ValueError:
        return []
    return listed if isinstance(listed, list) else []


def _integer(info: Mapping[str, str], name: str) -> int:
    return int(_number(info, name) or 0)


def _number(info: Mapping[str, str], name: str) -> float | None:
    """None: it is not told, or null. Another version's worker may tell what it likes."""
    try:
        return float(info[name])
    except (KeyError, ValueError):
        return None


def _worst(values: Any) -> float | None:
    """Percentiles of several workers cannot be put together; the slowest is the one to know of."""
    return max((value for value in values if value is not None), default=None)
