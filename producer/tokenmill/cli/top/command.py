"""The command: looks, draws, listens for a key, until `q`. Knows no figure."""

import contextlib
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from tokenmill.cli.bulk.board import rq_redis_option
from tokenmill.cli.exits import Exit, fail, with_exit_codes
from tokenmill.cli.options import queue_options
from tokenmill.fleet.reader import FleetReader
from tokenmill.fleet.values import FleetSnapshot
from tokenmill.wire.errors import UnavailableError

if TYPE_CHECKING:
    from rich.console import Console

    from tokenmill.wire.messages import BatchPicture

LOOK_S = 1.0  # workers tell their figures once a second ...
FRAME_S = 0.25  # ... and draw their batches four times
ONCE_S = 2.5  # for rates, and for workers to notice that somebody looks


@click.command(
    help=with_exit_codes(
        """Watch the fleet: queue, batch, workers, bulk runs, errors. Keys: 1-9 whose batch, q ends.

        \b
        tokenmill top
        tokenmill top --once            # one frame, for scripts and tickets

        Ids and counts only: what was asked and answered is not shown.
        """,
        "0 ended by q, or --once was printed, 2 wrong usage, 3 no server, 130 interrupted",
    )
)
@queue_options
@rq_redis_option
@click.option("--once", "is_once", is_flag=True, help="Print one frame, after a moment of looking, and end.")
def top(redis_url: str, queue: str, partitions: int, rq_url: str | None, is_once: bool) -> None:
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        fail("this command needs rich: pip install 'tokenmill[bulk]'", Exit.USAGE)
    console = Console()
    if not is_once and not (console.is_terminal and sys.stdin.isatty()):
        fail("top wants a terminal; in a script or a pipe use --once", Exit.USAGE)
    with contextlib.closing(FleetReader(redis_url, queue, partitions, rq_url=rq_url)) as reader:
        if is_once:
            _print_once(reader, console)
        else:
            _watch(reader, console)


def _print_once(reader: FleetReader, console: "Console") -> None:
    from tokenmill.cli.top.frame import frame

    look = reader.look()
    give_up_s = time.monotonic() + (ONCE_S if look.workers else 0.0)
    pictures: dict[str, BatchPicture] = {}
    while time.monotonic() < give_up_s:
        pictures = reader.pictures(_names(look))
        time.sleep(FRAME_S)
    console.print(frame(reader.look(), pictures, 0, console.size, is_live=False))


def _watch(reader: FleetReader, console: "Console") -> None:
    """A server that is away is told of, and asked again; only at the start it ends the command."""
    from rich.live import Live

    from tokenmill.cli.top.frame import frame, trouble

    look, look_due_s, chosen = reader.look(), time.monotonic() + LOOK_S, 0
    pictures: dict[str, BatchPicture] = {}
    with Live(console=console, screen=True, auto_refresh=False) as live, _keys() as pressed:
        while True:
            try:
                if time.monotonic() >= look_due_s:
                    look, look_due_s = reader.look(), time.monotonic() + LOOK_S
                pictures = reader.pictures(_names(look))
                live.update(frame(look, pictures, chosen, console.size), refresh=True)
            except UnavailableError as error:
                live.update(trouble(str(error)), refresh=True)
            key = pressed(FRAME_S)
            if key in ("q", "Q", "\x1b"):
                return
            if key.isdigit() and 0 < int(key) <= len(look.workers):
                chosen = int(key) - 1


def _names(look: FleetSnapshot) -> list[str]:
    return [worker.picture_name for worker in look.workers if worker.picture_name is not None]


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Inside, keys come one by one and unseen: a function that waits so many seconds for one, "" when none came."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(timeout_s: float) -> str:
        is_there, _, _ = select.select([descriptor], [], [], timeout_s)
        return sys.stdin.read(1) if is_there else ""

    tty.setcbreak(descriptor)
    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
