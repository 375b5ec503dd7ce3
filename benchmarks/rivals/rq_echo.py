"""RQ: enqueued by `enqueue_many`, a SimpleWorker (no fork for each job), results read by its blocking call."""

from collections.abc import Sequence

import redis
from rq import Queue, SimpleWorker

from benchmarks.rivals.common import TEXT, figures, parse_arguments, print_line

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
    found = figures(
        num_jobs=args.num_jobs,
        enqueue=lambda num: enqueue(queue, num),
        client=client,
        module=MODULE,
        url=args.redis,
        round_trip=lambda: round_trip(queue),
        num_round_trips=args.round_trips,
    )
    print_line("rq", found, ["rq", "redis", "hiredis"])


if __name__ == "__main__":
    main()
