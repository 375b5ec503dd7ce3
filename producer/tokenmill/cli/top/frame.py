"""One frame: a snapshot and pictures as what rich draws. Pure: knows no server, no terminal and no key."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from rich.console import ConsoleDimensions, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tokenmill.bulk.progress import format_duration
from tokenmill.cli.top.batch import batch_text
from tokenmill.fleet.values import FleetSnapshot, LaneLook, RunLook, WorkerLook
from tokenmill.wire.messages import BatchPicture

SOFT = "bright_black"
BAR = 24  # columns
WIDE = 112  # columns: less is told, or in more lines, where there are fewer
MOST_RUNS = 5
MOST_PROBLEMS = 5
BESIDE_BATCH = 21  # lines that everything but the batch takes, lists aside


def frame(
    look: FleetSnapshot,
    pictures: Mapping[str, BatchPicture],
    chosen: int,
    size: ConsoleDimensions,
    *,
    is_live: bool = True,
) -> RenderableType:
    """`chosen`: whose batch, by its place among the workers."""
    worker = look.workers[min(chosen, len(look.workers) - 1)] if look.workers else None
    picture = pictures.get(worker.picture_name or "") if worker is not None else None
    lists = [*_runs(look), *_problems(look)]
    num_lines = max(4, size.height - BESIDE_BATCH - len(look.workers) - len(lists)) if is_live else 64
    parts: list[RenderableType] = [
        _headline(look, is_live=is_live),
        _figures(look, size.width),
        Rule(_batch_title(look, worker, picture), align="left", style=SOFT),
        batch_text(picture, width=size.width, num_lines=num_lines),
        Rule("Queue", align="left", style=SOFT),
        _lanes(look.lanes),
        Rule("Workers", align="left", style=SOFT),
        _workers(look.workers, size.width),
    ]
    return Group(*parts, *lists)


def trouble(message: str) -> RenderableType:
    return Panel(Text(message), title="no answer, trying again", border_style="red", title_align="left")


def _headline(look: FleetSnapshot, *, is_live: bool) -> Text:
    text = Text("tokenmill", style="bold")
    text.append(f"  queue {look.queue}", style=SOFT)
    text.append(f"  {datetime.fromtimestamp(look.at_ms / 1000):%H:%M:%S}", style=SOFT)
    if not look.workers:
        text.append("   ▲ no worker", style="bold red")
    if look.num_dead_letters:
        text.append(f"   ▲ {look.num_dead_letters} dead letters", style="yellow")
    if is_live:
        text.append("   q ends", style=SOFT)
    return text


def _figures(look: FleetSnapshot, width: int) -> Table:
    rates = look.rates
    pages = sum(worker.num_pages for worker in look.workers)
    used = pages - sum(worker.num_free_pages for worker in look.workers)
    first = _ms(look.first_token_p50_ms)
    told = {
        "tokens/s": f"{rates.decode_tokens_per_s:,.0f}",
        "prompt tokens/s": f"{rates.prefill_tokens_per_s:,.0f}",
        "waiting": f"{look.depth:,}",
        "oldest": "-" if look.oldest_age_s is None else format_duration(look.oldest_age_s),
        "in flight": f"{look.in_flight:,}",
        "first token": first if look.first_token_p95_ms is None else f"{first} (p95 {_ms(look.first_token_p95_ms)})",
        "KV pages": f"{100 * used / pages:.0f} %" if pages else "-",
        "prefix cache": "-" if rates.cached_share is None else f"{100 * rates.cached_share:.0f} %",
    }
    table = Table.grid(padding=(0, 3))
    names, per_line = list(told), len(told) if width >= WIDE else len(told) // 2
    for start in range(0, len(names), per_line):
        some = names[start : start + per_line]
        table.add_row(*(Text(name, style=SOFT, no_wrap=True) for name in some))
        table.add_row(*(Text(told[name], style="bold", no_wrap=True) for name in some))
    return table


def _batch_title(look: FleetSnapshot, worker: WorkerLook | None, picture: BatchPicture | None) -> Text:
    text = Text("Batch")
    if worker is not None:
        text.append(f" {worker.name}" if len(look.workers) > 1 else "", style=SOFT)
        text.append(f" {worker.num_running} of {worker.max_num_seqs} rows", style=SOFT)
    if picture is not None:
        text.append("  ■ prefill", style="yellow").append("  ━ decode", style="cyan")
        text.append("  ▌ finished").append("  ✗ cut", style="red")
    return text


def _lanes(lanes: Sequence[LaneLook]) -> Table:
    most = max((lane.backlog + lane.in_flight for lane in lanes), default=0) or 1
    table = Table.grid(padding=(0, 2))
    for lane in lanes:
        if not lane.backlog and not lane.in_flight and lane.name in ("resume", "quarantine"):
            continue
        flight, waiting = (round(BAR * number / most) for number in (lane.in_flight, lane.backlog))
        bar = Text("━" * flight, style="cyan").append("─" * waiting, style="yellow")
        told = Text(f"{lane.backlog:,} wait, {lane.in_flight:,} run", style=SOFT)
        table.add_row(Text(lane.name.ljust(10)), bar + Text(" " * max(0, BAR - flight - waiting)), told)
    return table


def _workers(workers: Iterable[WorkerLook], width: int) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style=SOFT)
    table.add_column("", no_wrap=True)
    if width >= WIDE:
        table.add_column("model", no_wrap=True)
        table.add_column("device", no_wrap=True)
    for name in ("tokens/s", "rows", "KV pages", "first token", "lease"):
        table.add_column(name, justify="right", no_wrap=True)
    for worker in workers:
        used = worker.num_pages - worker.num_free_pages
        table.add_row(
            _shortened(worker.name, 24),
            *((_shortened(worker.model, 30), worker.device) if width >= WIDE else ()),
            f"{worker.rates.decode_tokens_per_s:,.0f}",
            f"{worker.num_running}/{worker.max_num_seqs}",
            f"{100 * used / worker.num_pages:.0f} %" if worker.num_pages else "-",
            _ms(worker.first_token_p50_ms),
            Text(f"{worker.lease_left_s:.0f} s", style="red" if worker.lease_left_s < 0 else ""),
        )
    return table


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _runs(look: FleetSnapshot) -> list[RenderableType]:
    if not look.runs:
        return []
    return [Rule("Bulk runs", align="left", style=SOFT), *map(_run, look.runs[:MOST_RUNS])]


def _run(run: RunLook) -> Table:
    table = Table.grid(padding=(0, 2))
    left = f", {format_duration(run.eta_s)} left" if run.eta_s is not None and run.state == "running" else ""
    failed = f", {run.num_failed:,} failed" if run.num_failed else ""
    of = "" if run.num_rows is None else f" of {run.num_rows:,}"
    bar = ProgressBar(total=run.num_rows or 1, completed=run.num_settled, width=BAR, complete_style="cyan")
    told = Text(f"{run.num_settled:,}{of} rows{failed}{left}", style=SOFT)
    state = Text(run.state.ljust(9), style="red" if run.state in ("failed", "lost") else "")
    table.add_row(Text(run.out[:30].ljust(30)), state, bar, told)
    return table


def _problems(look: FleetSnapshot) -> list[RenderableType]:
    """The newest of both kinds."""
    letters = [(one.at_ms, f"dead letter  {one.request_id}  {one.reason}") for one in look.dead_letters]
    failures = [(one.at_ms, f"error        {one.request_id}  {one.code}") for one in look.failures]
    newest = sorted([*letters, *failures], reverse=True)[:MOST_PROBLEMS]
    if not newest:
        return []
    lines = [
        Text(f"{datetime.fromtimestamp(at_ms / 1000):%H:%M:%S}  {_printable(told)}", overflow="ellipsis", no_wrap=True)
        for at_ms, told in newest
    ]
    return [Rule("Problems", align="left", style="yellow"), *lines]


def _printable(text: str) -> str:
    """A producer chose some of these words: none may move the cursor of who reads them."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"
