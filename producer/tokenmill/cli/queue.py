"""`tokenmill queue`: what waits, what runs, who works. Knows how to print the client's statistics, nothing else."""

import json
from dataclasses import asdict

import click

from tokenmill.bulk.progress import format_duration
from tokenmill.cli.exits import with_exit_codes
from tokenmill.cli.options import json_option, queue_options
from tokenmill.client import Client
from tokenmill.wire.keys import Lane
from tokenmill.wire.store import QueueStatistics, WorkerStatistics

LANE_NAMES = {Lane.RESUME: "resume", Lane.HIGH: "high", Lane.NORMAL: "normal", Lane.BULK: "bulk"}


@click.command(
    help=with_exit_codes(
        """Show how many requests wait and run, how old the oldest is, and who works.

        \b
        tokenmill queue
        tokenmill queue --json | jq .depth
        """,
        "0 shown, 2 wrong usage, 3 no server",
    )
)
@queue_options
@json_option
def queue(redis_url: str, queue: str, partitions: int, as_json: bool) -> None:
    with Client(redis_url, queue, partitions) as client:
        statistics = client.statistics()
    click.echo(json.dumps(_as_json(statistics)) if as_json else _as_text(statistics))


def _as_json(statistics: QueueStatistics) -> dict[str, object]:
    totals = {name: getattr(statistics, name) for name in ("depth", "in_flight", "oldest_age_s")}
    return {**totals, **asdict(statistics)}


def _as_text(statistics: QueueStatistics) -> str:
    oldest = statistics.oldest_age_s
    parts = f" ({statistics.partitions} partitions)" if statistics.partitions > 1 else ""
    lines = [
        f"queue {statistics.queue}{parts}: {statistics.depth} waiting, {statistics.in_flight} in flight, "
        f"{statistics.scheduled} scheduled, {statistics.dead_letters} dead letters"
        + ("" if oldest is None else f"; the oldest is {format_duration(oldest)} old")
    ]
    for lane, its in statistics.lanes.items():
        if its.backlog or its.in_flight:
            lines.append(f"  {LANE_NAMES.get(Lane(lane), lane):<8} {its.backlog} waiting, {its.in_flight} in flight")
    lines += [_worker_line(worker) for worker in statistics.workers] or ["  no worker"]
    return "\n".join(lines)


def _worker_line(worker: WorkerStatistics) -> str:
    told = "  ".join(f"{name} {value}" for name, value in sorted(worker.info.items()) if value and len(value) <= 40)
    return f"  worker {worker.name}: {told or 'nothing told yet'}"
