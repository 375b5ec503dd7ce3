"""Measures what docs/batching.md shows, each part in turn there and back. Knows no page."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from tokenmill_worker.engine import Engine
from tokenmill_worker.tune.figures import Figures
from tokenmill_worker.tune.knee import Seen, knee
from tokenmill_worker.tune.loop import Loop
from tokenmill_worker.tune.space import Point, Space
from tokenmill_worker.tune.workload import Lengths, Workload, random_workload

from benchmarks.baselines import Baseline, load_model, packed, padded, run_static
from benchmarks.batching.loads import WAYS, ArrivalLoop
from benchmarks.engines import TokenIds, generate, load_engine, token_prompts
from benchmarks.offline.heavy_tailed import static
from benchmarks.offline.latency import model_folder
from benchmarks.workload import workload

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
TOKENS = (64, 128, 256, 512, 1024, 2048)
INTERVALS = (1, 2, 4, 8, 16)
USUAL_ROWS = 32  # while the interval and the tokens of a step are varied
ARRIVAL_ROWS = 16
LOADS = (0.25, 0.5, 0.8)  # of what a continuous batch of ARRIVAL_ROWS can do
SHORT_PROMPT, SHORT_OUTPUT = "~23", "~30"  # the usual ones, a quarter as long: a batch begins and ends in seconds
BATCHES, NUM_REQUESTS = (4, 16), 32
Row = dict[str, float]


def there_and_back(
    points: Sequence[Point], measure: Callable[[Point, float], Figures], *, seconds: float, name: str
) -> list[Figures]:
    """Each point twice, in opposite orders: the machine's drift falls on all alike."""
    up = [told(name, point, measure(point, seconds)) for point in points]
    down = [told(name, point, measure(point, seconds)) for point in reversed(points)][::-1]
    return [Figures.typical(pair) for pair in zip(up, down, strict=True)]


def told(name: str, point: Point, figures: Figures) -> Figures:
    print(f"  {name:<12}{point!s:<34}{figures.tokens_per_s:>10.1f} tok/s{figures.token_p50_ms:>9.1f} ms", flush=True)
    return figures


def question_workload(engine: Engine) -> Workload:
    """Real questions, with the lengths of workload A."""
    prompts = token_prompts(engine, workload(512))
    return Workload(
        "questions, answers of ~122 tokens",
        prompts,
        Lengths.parse("~122"),
        vocab_size=engine.tokenizer.vocab_size,
        max_model_len=engine.max_model_len,
    )


def by_rows(loop: Loop, *, seconds: float) -> list[Row]:
    space = Space()
    found = there_and_back([space.usual(num) for num in ROWS], loop.closed, seconds=seconds, name="rows")
    plain = [(num, figures.plain()) for num, figures in zip(ROWS, found, strict=True)]
    return [{**one, "num_decoding": one["num_rows"], "num_rows": num} for num, one in plain]


def by_interval(loop: Loop, *, seconds: float) -> list[Row]:
    points = [Point(USUAL_ROWS, 512, interval) for interval in INTERVALS]
    found = there_and_back(points, loop.closed, seconds=seconds, name="interval")
    return [{"interval": interval, **figures.plain()} for interval, figures in zip(INTERVALS, found, strict=True)]


def by_tokens(loop: Loop, *, seconds: float) -> list[Row]:
    points = [Point(USUAL_ROWS, tokens, 1) for tokens in TOKENS]
    found = there_and_back(points, loop.closed, seconds=seconds, name="tokens")
    return [{"tokens": tokens, **figures.plain()} for tokens, figures in zip(TOKENS, found, strict=True)]


def by_way(engine: Engine, *, seconds: float) -> list[dict[str, object]]:
    """The three ways under the same arrivals."""
    short = random_workload(
        SHORT_PROMPT, SHORT_OUTPUT, vocab_size=engine.tokenizer.vocab_size, max_model_len=engine.max_model_len
    )
    loop, point = ArrivalLoop(engine, short), Point(ARRIVAL_ROWS, 512, 1)
    capacity = loop.closed(point, seconds / 2).tokens_per_s / loop.mean_output
    found: list[dict[str, object]] = []
    for load in LOADS:
        for way in WAYS:
            figures = told(way, point, loop.served(way, point, load * capacity, seconds))
            found.append({"way": way, "load": load, "rate": round(load * capacity, 3), **figures.plain()})
    loop.clear()
    return found


def by_form(engine: Engine, settings: dict[str, object]) -> list[dict[str, object]]:
    """Static batches as they are usually written, and ours: tokens a second for the same requests."""
    model = load_model(model_folder(settings), str(settings["dtype"]))
    work = workload(NUM_REQUESTS, scale=0.25)
    prompts, lengths = token_prompts(engine, work), work.max_tokens
    found: list[dict[str, object]] = []
    for slots in BATCHES:
        limit(engine, slots)
        sides: dict[str, Callable[[], tuple[int, float | None]]] = {
            "padded (pad_sequence)": partial(baseline, model, prompts, lengths, slots, padded),
            "packed (pack_sequence)": partial(baseline, model, prompts, lengths, slots, packed),
            "ours, static": partial(held_back, engine, prompts, lengths, slots),
            "ours, continuous": lambda: (generate(engine, prompts, lengths), None),
        }
        for name, run in sides.items():
            started_s = time.perf_counter()
            tokens, waste = run()
            rate = tokens / (time.perf_counter() - started_s)
            print(f"  {name:<26}{slots:>4} rows{rate:>10.1f} tok/s", flush=True)
            found.append({"form": name, "slots": slots, "tokens_per_s": round(rate, 1), "waste": waste})
    return found


def baseline(
    model: torch.nn.Module, prompts: Sequence[TokenIds], lengths: Sequence[int], slots: int, run: Baseline
) -> tuple[int, float | None]:
    answers, cost = run_static(model, prompts, lengths, slots=slots, baseline=run)
    return sum(map(len, answers)), round(cost.waste, 3)


def held_back(
    engine: Engine, prompts: Sequence[TokenIds], lengths: Sequence[int], slots: int
) -> tuple[int, float | None]:
    """Our engine in batches that nobody joins."""
    return static(partial(generate, engine), prompts, lengths, slots=slots), None


def limit(engine: Engine, num_rows: int) -> None:
    engine.reconfigure(max_num_seqs=num_rows, max_num_batched_tokens=512, scheduling_interval=1)


def knee_of(rows: Sequence[Row]) -> int | None:
    found = knee([Seen(int(row["num_rows"]), row["tokens_per_s"], row["token_p50_ms"]) for row in rows])
    return found.num_rows if found else None


def measure(settings: dict[str, object], *, scale: float) -> dict[str, object]:
    """About seven minutes at scale 1, on two cores."""
    engine = load_engine({**settings, "max_num_seqs": max(ROWS), "max_num_batched_tokens": max(TOKENS)})
    loop = Loop(engine, question_workload(engine))
    loop.closed(Point(8, 512, 1), scale)  # warm-up
    rows = by_rows(loop, seconds=4.5 * scale)
    figures: dict[str, object] = {
        "num_requests": NUM_REQUESTS,
        "by_rows": rows,
        "knee": knee_of(rows),
        "by_interval": by_interval(loop, seconds=6 * scale),
        "by_tokens": by_tokens(loop, seconds=5 * scale),
    }
    loop.clear()
    return {**figures, "by_way": by_way(engine, seconds=10 * scale), "by_form": by_form(engine, settings)}
