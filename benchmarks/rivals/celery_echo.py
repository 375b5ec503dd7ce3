"""Celery: solo pool, a large prefetch, no events, results in Redis, one producer kept for all messages."""

import sys
from collections.abc import Sequence

import redis
from celery import Celery

from benchmarks.rivals.common import TEXT, Rival, obey, parse_arguments

MODULE = "benchmarks.rivals.celery_echo"

app = Celery("rival")


def echo(text: str) -> str:
    return text


task = app.task(name="echo")(echo)


def configure(url: str) -> None:
    app.conf.update(
        broker_url=url,
        result_backend=url,
        worker_prefetch_multiplier=1_000,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )


def enqueue(num: int) -> Sequence[str]:
    """Without the subscription to each result that `apply_async` makes: here the keys of the results are looked at."""
    subscribe, app.backend.on_task_call = app.backend.on_task_call, lambda producer, task_id: {}
    try:
        with app.producer_pool.acquire(block=True) as producer:
            sent = [task.apply_async((TEXT,), producer=producer) for _ in range(num)]
    finally:
        app.backend.on_task_call = subscribe
    return [f"celery-task-meta-{result.id}" for result in sent]


def round_trip() -> None:
    task.delay(TEXT).get(timeout=30, interval=0.001)


def main() -> None:
    args = parse_arguments()
    configure(args.redis)
    if args.serve:
        flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=ERROR"]
        sys.exit(app.worker_main(["worker", "--pool=solo", *flags]))
    rival = Rival(
        name="celery",
        module=MODULE,
        packages=["celery", "kombu", "redis", "hiredis"],
        client=redis.Redis.from_url(args.redis),
        enqueue=enqueue,
        round_trip=round_trip,
    )
    obey(rival, args.redis)


if __name__ == "__main__":
    main()
