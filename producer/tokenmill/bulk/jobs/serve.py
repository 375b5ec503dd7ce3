"""A bulk worker and its sweeper, put together. Knows no command line."""

from contextlib import closing
from pathlib import Path

from tokenmill.bulk.jobs.board import cancel_leftovers_of, connect_store, rq_queue
from tokenmill.bulk.jobs.execution import Site
from tokenmill.bulk.jobs.limits import LimitBook
from tokenmill.bulk.jobs.sweeper import Sweeper
from tokenmill.bulk.jobs.worker import WORKER_TTL_S, BulkWorker
from tokenmill.wire.store import RunTransitions


def serve(redis_url: str, rq_url: str, *, files: Path | None, lease_s: float, is_burst: bool) -> bool:
    """Executes runs until SIGTERM, or until none is left; False: it ended because RQ's server went away."""
    runs = RunTransitions(ttl_ms=round(lease_s * 1000))
    with closing(connect_store(rq_url, block_s=WORKER_TTL_S)) as rq_store, closing(connect_store(rq_url)) as store:
        queue = rq_queue(rq_store.client)
        worker = BulkWorker(queue, store, runs, Site(redis_url=redis_url, files=files, limits=LimitBook(store)))
        with Sweeper(queue, store, runs, lambda job: cancel_leftovers_of(job, redis_url)):
            worker.work(burst=is_burst, logging_level="INFO")
    return is_burst or worker.is_leaving.is_set()
