"""The OpenAI-compatible front door: HTTP in, jobs on a queue, chunks out. Needs the extra `gateway`; knows no model."""
