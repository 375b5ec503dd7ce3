"""Runs that RQ carries: one job for each run, never one for each prompt. The only place that knows rq."""
