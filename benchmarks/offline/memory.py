"""What the engine holds: peak memory, its growth over 5,000 requests, and what 10,000 waiting requests cost a step.

Growth is of resident memory from the 500th finished request to the last: pages are touched and caches filled by then.

Caveats: short requests of 12 prompt tokens and 2 of answer, so that 5,000 take a minute; 64 rows decode beside the
waiting ones.
"""

import argparse
import os
from pathlib import Path
from statistics import median

from tokenmill_worker.engine import Engine
from tokenmill_worker.engine.api import EngineRequest

from benchmarks.engines import add_engine_arguments, engine_settings, exactly, generate, load_engine, timed_step
from benchmarks.offline.latency import rows_of
from benchmarks.report import keep_line, peak_rss_mib, print_json

NUM_SETTLED = 500
PROMPT_TOKENS, OUTPUT_TOKENS = 12, 2
NUM_STEPS = 40


def resident_mib(statm: str) -> float:
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def growth(engine: Engine, num_requests: int) -> dict[str, float]:
    """Each round's prompts are its own, so that a prefix cache would have something to keep."""
    rows = rows_of(engine, num_requests, PROMPT_TOKENS)
    sizes = []
    for start in range(0, num_requests, NUM_SETTLED):
        batch = rows[start : start + NUM_SETTLED]
        generate(engine, batch, [OUTPUT_TOKENS] * len(batch))
        sizes.append(resident_mib(Path("/proc/self/statm").read_text()))
    return {
        "num_requests": num_requests,
        "settled_mib": round(sizes[0], 1),
        "at_end_mib": round(sizes[-1], 1),
        "growth_mib": round(sizes[-1] - sizes[0], 1),
    }


def step_s(engine: Engine, num_rows: int, num_waiting: int) -> float:
    """The median decode step of so many rows with so many others waiting; nothing is left behind."""
    rows = rows_of(engine, num_rows + num_waiting, 32)
    for index, prompt in enumerate(rows):
        engine.add_request(
            EngineRequest(request_id=f"row-{index}", prompt_token_ids=prompt, params=exactly(2 * NUM_STEPS))
        )
    while engine.statistics().num_running < num_rows:
        engine.step()
    for _ in range(NUM_STEPS // 2):
        engine.step()
    seconds = [timed_step(engine).seconds for _ in range(NUM_STEPS)]
    assert engine.statistics().num_waiting == num_waiting
    engine.close()
    return median(seconds)


def waiting(engine: Engine, num_rows: int, num_waiting: int) -> dict[str, float]:
    alone_s, crowded_s = (step_s(engine, num_rows, num) for num in (0, num_waiting))
    return {
        "num_waiting": num_waiting,
        "step_ms_alone": round(alone_s * 1e3, 3),
        "step_ms_crowded": round(crowded_s * 1e3, 3),
        "ratio": round(crowded_s / alone_s, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(parser)
    parser.add_argument("--num-requests", type=int, default=5_000)
    parser.add_argument("--num-waiting", type=int, default=10_000)
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()
    settings = engine_settings(args, kv_cache_tokens=256 * args.max_num_seqs)
    engine = load_engine(settings)
    figures = {
        "growth": growth(engine, args.num_requests),
        "waiting": waiting(engine, args.max_num_seqs, args.num_waiting),
        "peak_rss_mib": peak_rss_mib(),
    }
    line = print_json("offline_memory", figures, settings)
    if args.keep:
        keep_line("offline_memory", line)


if __name__ == "__main__":
    main()
