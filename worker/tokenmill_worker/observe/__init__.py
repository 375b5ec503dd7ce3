"""What is told about a worker: figures for Prometheus, spans for a tracer. The worker's parts know none of it."""
