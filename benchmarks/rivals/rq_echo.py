"""RQ: enqueued by `enqueue_many`, a SimpleWorker (no fork for each job), results read by its blocking call."""

from collections.abc import Sequence

import redis
from rq import Queue, SimpleWorker

from benchmarks.rivals.common import TEXT, Rival, obey, parse_arguments

MODULE = "benchmarks.rivals.rq_echo"
CHUNK = 1_000


def echo(text: str) -> str:
    return text


def enqueue(queue: Queue, num: int) -> Sequence[str]:
    keys: list[str] = []
    for start in range(0, num, CHUNK):
        some = [
            Queue.prepare_data(f"{MODULE}.echo", args=(TEXT,), result_ttl=3_600) for _ in range(min(CHUNK, num - start))
        ]
        keys += [f"rq:results:{job.id}" for job in queue.enqueue_many(some)]
    return keys


def round_trip(queue: Queue) -> None:
    queue.enqueue(f"{MODULE}.echo", TEXT).latest_result(timeout=30)


def main() -> None:
    args = parse_arguments()
    client = redis.Redis.from_url(args.redis)
    queue = Queue("rival", connection=client)
    if args.serve:
        SimpleWorker([queue], connection=client).work(logging_level="ERROR")
        return
    rival = Rival(
        name="rq",
        module=MODULE,
        packages=["rq", "redis", "hiredis"],
        client=client,
        enqueue=lambda num: enqueue(queue, num),
        round_trip=lambda: round_trip(queue),
    )
    obey(rival, args.redis)


if __name__ == "__main__":
    main()
