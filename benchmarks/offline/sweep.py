"""Decode rates over 1 to 256 rows in flight and over contexts of 128 to 8k tokens, drawn as SVG.

Both curves must be smooth: `worst_step` tells the largest fall of tokens a second from one point to the next while rows
double, and the largest rise of a step's time while contexts do.

Caveats: contexts of 128 tokens while rows are swept, four rows while contexts are; medians of pure decode steps.
"""

import argparse
import itertools
from pathlib import Path

from benchmarks.engines import add_engine_arguments, engine_settings, load_engine
from benchmarks.offline.latency import decode, print_rows
from benchmarks.offline.long_context import MAX_OUTPUT_TOKENS, measure
from benchmarks.plot import Curve, write_svg
from benchmarks.report import RESULTS, keep_line, peak_rss_mib, print_json

ROWS = "1,2,4,8,16,32,64,128,256"
CONTEXTS = "128,256,512,1024,2048,4096,8064"
CONTEXT_ROWS = 4
IMAGES = RESULTS.parents[1] / "docs" / "images"


def ratios(values: list[float]) -> list[float]:
    return [later / earlier for earlier, later in itertools.pairwise(values)]


def draw(folder: Path, by_rows: list[dict[str, float]], by_context: list[dict[str, float]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = Curve("rows in flight", "tokens a second", [(row["num_rows"], row["tokens_per_s"]) for row in by_rows])
    context = Curve("context, tokens", "ms a step", [(row["context"], row["step_ms"]) for row in by_context])
    write_svg(folder / "decode_by_rows.svg", "Decode rate by rows in flight", rows)
    write_svg(folder / "decode_by_context.svg", f"A step of {CONTEXT_ROWS} rows by context", context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(parser)
    parser.add_argument("--rows", default=ROWS)
    parser.add_argument("--contexts", default=CONTEXTS)
    parser.add_argument("--keep", action="store_true", help="write results and drawings into the repository")
    args = parser.parse_args()
    rows, contexts = ([int(word) for word in words.split(",")] for words in (args.rows, args.contexts))
    num_tokens = max(256 * max(rows), (max(contexts) + MAX_OUTPUT_TOKENS) * CONTEXT_ROWS)
    settings = engine_settings(args, max_num_seqs=max(*rows, CONTEXT_ROWS), kv_cache_tokens=num_tokens)
    engine = load_engine(settings)
    by_rows = [decode(engine, num) for num in rows]
    print_rows(by_rows)
    by_context = [measure(engine, context=context, num_rows=CONTEXT_ROWS) for context in contexts]
    print_rows(by_context)
    worst = {
        "tokens_per_s_by_rows": round(min(ratios([row["tokens_per_s"] for row in by_rows])), 3),
        "step_ms_by_context": round(max(ratios([row["step_ms"] for row in by_context])), 3),
    }
    figures = {"by_rows": by_rows, "by_context": by_context, "worst_step": worst, "peak_rss_mib": peak_rss_mib()}
    line = print_json("offline_sweep", figures, settings)
    if args.keep:
        keep_line("offline_sweep", line)
        draw(IMAGES, by_rows, by_context)


if __name__ == "__main__":
    main()
