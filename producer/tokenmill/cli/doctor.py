"""`tokenmill doctor`: is everything there that the main job needs? Shows findings; what to look at is in checks.py."""

import json
from collections.abc import Iterator
from dataclasses import asdict

import click
import redis

from tokenmill.cli.checks import (
    look_at_device,
    look_at_model,
    look_at_partitions,
    look_at_server,
    look_at_worker_extra,
)
from tokenmill.cli.exits import Exit, with_exit_codes
from tokenmill.cli.options import json_option, queue_options
from tokenmill.cli.queue_checks import (
    look_at_attention,
    look_at_dead_letters,
    look_at_head,
    look_at_orphans,
    look_at_quarantine,
    look_at_workers,
)
from tokenmill.cli.server_checks import Finding, Status, look_at_libraries
from tokenmill.partitions import Partitions
from tokenmill.wire.errors import TokenmillError
from tokenmill.wire.store import QueueStatistics, Store, connect

MARKS: dict[Status, str] = {"ok": "ok     ", "warning": "warning", "broken": "BROKEN "}
COLOURS: dict[Status, str] = {"ok": "green", "warning": "yellow", "broken": "red"}


@click.command(
    help=with_exit_codes(
        """Check the server, its settings, the workers, the model and the device.

        \b
        tokenmill doctor --redis redis://localhost:6379/0 --model smollm2
        """,
        "0 nothing is broken (there may be warnings), 1 something is broken, 2 wrong usage",
    )
)
@queue_options
@click.option("--model", metavar="M", help="Also look for this model: hub id, folder, GGUF file, smollm2 or echo.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, redis_url: str, queue: str, partitions: int, model: str | None, as_json: bool) -> None:
    findings = list(_look(redis_url, queue, partitions, model))
    is_fit = all(finding.status != "broken" for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": is_fit, "checks": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            _show(finding)
    ctx.exit(Exit.OK if is_fit else Exit.FAILED)


def _look(url: str, queue: str, partitions: int, model: str | None) -> Iterator[Finding]:
    is_served = False
    for finding in look_at_server(url, queue):
        is_served = is_served or (finding.check, finding.status) == ("server", "ok")
        yield finding
    if is_served:
        fit = look_at_partitions(url, queue, partitions)
        yield fit
        if fit.status == "ok":
            yield from _look_at_queue(url, queue, partitions)
    yield look_at_libraries()
    yield look_at_worker_extra()
    if model is not None:
        yield look_at_model(model)
    yield look_at_device()


def _look_at_queue(url: str, queue: str, partitions: int) -> Iterator[Finding]:
    parts = Partitions(queue, partitions, url=url)
    stores = parts.connect(lambda tag: Store(connect(url, key=tag)))
    asked = list(zip(stores, parts.transitions, strict=True))
    try:
        statistics = QueueStatistics.sum([store.run(transitions.statistics()) for store, transitions in asked])
        gone = [name for store, transitions in asked for name in store.run(transitions.find_dead())]
    except (TokenmillError, redis.RedisError) as error:
        yield Finding("workers", "broken", f"the queue cannot be looked at: {error}")
        return
    finally:
        for store in stores:
            store.close()
    yield look_at_workers(statistics)
    if attention := look_at_attention(statistics):
        yield attention
    if head := look_at_head(statistics):
        yield head
    yield look_at_orphans(gone, statistics)
    yield look_at_quarantine(statistics)
    yield look_at_dead_letters(statistics)


def _show(finding: Finding) -> None:
    mark = click.style(MARKS[finding.status], fg=COLOURS[finding.status])
    click.echo(f"{mark}  {finding.check:<12}  {finding.detail}")
    if finding.advice and finding.status != "ok":
        click.echo(f"{'':<23}-> {finding.advice}")
