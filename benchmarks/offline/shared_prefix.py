"""One system prompt of 1,000 tokens before 64 questions: what the prefix cache saves, in tokens and in time.

All requests come at once, so the first one computes what the others find. The cache starts empty each time: an engine
of its own for each side.

Caveats: 32 output tokens a request, so that prefill matters as it does for short answers over long instructions.
"""

import argparse

from tokenmill_worker.engine import Engine

from benchmarks.engines import add_engine_arguments, engine_settings, load_engine, run_steps, token_prompts
from benchmarks.report import keep_line, print_json
from benchmarks.workload import long_text, shared_prefix

OUTPUT_TOKENS = 32


def system_prompt(engine: Engine, num_tokens: int) -> str:
    """Text of so many tokens, give or take what cutting a text between tokens may cost."""
    token_ids = engine.tokenizer.encode(long_text(10 * num_tokens))[:num_tokens]
    return engine.tokenizer.decode(token_ids)


def measure(settings: dict[str, object], *, num_requests: int, prefix_tokens: int) -> dict[str, float]:
    engine = load_engine(settings)
    run_steps(engine, [[1, 2, 3]], [2])
    system = system_prompt(engine, prefix_tokens)
    work = shared_prefix(num_requests, system=system, num_output_tokens=OUTPUT_TOKENS)
    run = run_steps(engine, token_prompts(engine, work), work.max_tokens)
    return {
        "prefill_tokens": run.num_prefill_tokens,
        "cached_tokens": run.num_cached_tokens,
        "seconds": round(run.seconds, 3),
        "tokens_per_s": round(work.num_output_tokens / run.seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(parser)
    parser.add_argument("--num-requests", type=int, default=64)
    parser.add_argument("--prefix-tokens", type=int, default=1_000)
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()
    sizes = {"num_requests": args.num_requests, "prefix_tokens": args.prefix_tokens}
    tokens = {"kv_cache_tokens": (args.prefix_tokens + 512) * args.max_num_seqs}
    sides = {
        name: measure(engine_settings(args, enable_prefix_caching=is_on, **tokens), **sizes)
        for name, is_on in (("off", False), ("on", True))
    }
    figures = {
        **sides,
        "prefill_saved": round(1 - sides["on"]["prefill_tokens"] / sides["off"]["prefill_tokens"], 4),
        "times_faster": round(sides["off"]["seconds"] / sides["on"]["seconds"], 2),
    }
    for name, side in sides.items():
        print(f"cache {name:<5}" + "".join(f"{key:>18} {value:,}" for key, value in side.items()))
    line = print_json("offline_shared_prefix", figures, {**engine_settings(args, **tokens), **sizes})
    if args.keep:
        keep_line("offline_shared_prefix", line)


if __name__ == "__main__":
    main()
