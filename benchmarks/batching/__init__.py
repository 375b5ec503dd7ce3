"""The claim that this project starts from, measured: `python -m benchmarks.batching`."""
