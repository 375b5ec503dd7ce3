"""How many rows, how often newcomers, and what each way of batching costs: the figures of docs/batching.md.

python -m benchmarks.batching --keep      measures (about seven minutes on two cores), keeps the result, draws the page
python -m benchmarks.batching --render    draws page and pictures from the kept result, and measures nothing

Caveats: a closed loop with as many clients as rows, on the bare engine; each point twice, there and back. Rates are
what an undisturbed machine gives (medians over steps). The three ways under arrivals have prompts and answers of a
quarter of the usual length. Padded and packed static batches run once each over transformers' own model class. The page
also shows what `python -m benchmarks.flush_interval --keep` and `python -m benchmarks.offline latency --keep` have
measured.
"""

import argparse

from benchmarks.batching.page import kept_result, write_page
from benchmarks.engines import add_engine_arguments, engine_settings
from benchmarks.report import keep_line, print_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(parser)
    parser.add_argument("--scale", type=float, default=1.0, help="of the windows: 0.1 for a trial")
    parser.add_argument("--keep", action="store_true", help="write result, page and pictures into the repository")
    parser.add_argument("--render", action="store_true", help="write page and pictures from the kept result")
    parser.add_argument("--name", default="batching_smollm2_cpu", help="of the result")
    args = parser.parse_args()
    if not args.render:
        from benchmarks.batching.measure import measure  # here: drawing needs no torch

        settings = engine_settings(args)
        line = print_json(args.name, measure(settings, scale=args.scale), settings)
        if args.keep:
            keep_line(args.name, line)
    if args.render or args.keep:
        write_page(kept_result(args.name))


if __name__ == "__main__":
    main()
