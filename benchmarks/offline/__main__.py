"""The engine alone. Each question is a module with a command line of its own:

python -m benchmarks.offline throughput        workload A: 64 requests at once, useful output tokens a second
python -m benchmarks.offline latency           decode at 1, 8, 32, 64 in flight, beside what the machine allows
python -m benchmarks.offline long_context      prompts of 2k to 8k tokens
python -m benchmarks.offline shared_prefix     one system prompt of 1,000 tokens, 64 requests, cache on and off
python -m benchmarks.offline heavy_tailed      a few requests of very different lengths, beside static batches
python -m benchmarks.offline sweep             1 to 256 in flight, contexts of 128 to 8k, drawn to docs/images
python -m benchmarks.offline start             from a fresh process to the first token
python -m benchmarks.offline memory            what 5,000 requests leave behind, and 10,000 waiting ones cost
"""

import sys
from importlib import import_module

QUESTIONS = (
    "throughput",
    "latency",
    "long_context",
    "shared_prefix",
    "heavy_tailed",
    "sweep",
    "start",
    "memory",
)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in QUESTIONS:
        raise SystemExit(__doc__)
    question = sys.argv.pop(1)
    sys.argv[0] += f" {question}"
    import_module(f"benchmarks.offline.{question}").main()


if __name__ == "__main__":
    main()
