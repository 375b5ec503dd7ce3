"""The engine alone, without a queue: one module for each question, `python -m benchmarks.offline QUESTION`."""
