"""`make verify`: the engine's tokens against transformers' generate(), on a real model (python -m tests.verify)."""
