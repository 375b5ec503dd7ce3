"""What `tokenmill doctor` makes of a queue's statistics. Pure functions; they ask nobody."""

from collections import Counter
from collections.abc import Mapping, Sequence

from tokenmill.cli.server_checks import Finding
from tokenmill.wire.keys import Lane
from tokenmill.wire.store import QueueStatistics


def look_at_workers(statistics: QueueStatistics) -> Finding:
    workers = statistics.workers
    if not workers:
        advice = "start one: tokenmill worker --redis URL"
        return Finding("workers", "warning", f"none on queue {statistics.queue!r}", advice)
    late = [worker.name for worker in workers if worker.lease_left_s <= 0]
    if late:
        advice = "dead, stalled or cut off: its log says; another worker takes its requests over"
        return Finding("workers", "warning", f"no sign of life from {', '.join(late)}", advice)
    shortest_s = min(worker.lease_left_s for worker in workers)
    return Finding("workers", "ok", f"{len(workers)} on queue {statistics.queue!r}, leases for {shortest_s:.0f} s more")


def look_at_attention(statistics: QueueStatistics) -> Finding | None:
    """What the workers say of how they compute; None where none of them runs a real model."""
    backends = Counter(worker.info["attention_backend"] for worker in statistics.workers if _attends(worker.info))
    if not backends:
        return None
    detail = ", ".join(f"{name} on {count}" for name, count in sorted(backends.items()))
    notes = {worker.info.get("attention_note", "") for worker in statistics.workers} - {""}
    if not notes:
        return Finding("attention", "ok", detail)
    return Finding("attention", "warning", f"{detail}: slower kernels stand in for faster ones", min(notes))


def look_at_head(statistics: QueueStatistics) -> Finding | None:
    """How the workers find the likeliest token of a row that wants no more; None where they compute the whole head."""
    ways = Counter(way for worker in statistics.workers if (way := worker.info.get("greedy_head")))
    if not ways:
        return None
    detail = ", ".join(f"{way} on {count}" for way, count in sorted(ways.items()))
    return Finding("greedy head", "ok", f"{detail}; the tokens are those of the whole head")


def _attends(info: Mapping[str, str]) -> bool:
    return bool(info.get("attention_backend"))


def look_at_orphans(gone: Sequence[str], statistics: QueueStatistics) -> Finding:
    """`gone`: consumers that hold entries, or held a lease, and have none now."""
    if not gone:
        return Finding("orphans", "ok", "nothing is held by a worker that is gone")
    is_served = any(worker.lease_left_s > 0 for worker in statistics.workers)
    advice = "a worker takes them over within a lease or two" if is_served else "a worker takes them over: start one"
    return Finding("orphans", "warning", f"requests are held by {len(gone)} workers that are gone", advice)


def look_at_quarantine(statistics: QueueStatistics) -> Finding:
    lane = statistics.lanes[Lane.QUARANTINE.value]
    if not lane.backlog + lane.in_flight:
        return Finding("quarantine", "ok", "empty")
    advice = "each brought workers down twice and runs alone now; the workers' logs say what happened"
    return Finding("quarantine", "warning", f"{lane.backlog} wait, {lane.in_flight} at work", advice)


def look_at_dead_letters(statistics: QueueStatistics) -> Finding:
    if not statistics.dead_letters:
        return Finding("dead letters", "ok", "none")
    advice = "see why: tokenmill dead list; then redrive or purge them"
    return Finding("dead letters", "warning", str(statistics.dead_letters), advice)
