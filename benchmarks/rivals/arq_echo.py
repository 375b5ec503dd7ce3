"""arq: enqueued in concurrent chunks (it has no bulk call); a worker of 1,000 concurrent jobs that polls each 2 ms."""

import asyncio
from collections.abc import Sequence
from typing import Any

import redis
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.worker import Worker

from benchmarks.rivals.common import TEXT, Rival, obey, parse_arguments

MODULE = "benchmarks.rivals.arq_echo"
CHUNK = 100
POLL_S = 0.002


async def echo(context: dict[str, Any], text: str) -> str:
    return text


def serve(url: str) -> None:
    asyncio.set_event_loop(asyncio.new_event_loop())
    worker = Worker(
        functions=[echo],
        redis_settings=RedisSettings.from_dsn(url),
        max_jobs=1_000,
        queue_read_limit=1_000,
        poll_delay=POLL_S,
        keep_result=3_600,
    )
    worker.run()


async def enqueue(pool: ArqRedis, num: int) -> Sequence[str]:
    keys: list[str] = []
    for start in range(0, num, CHUNK):
        calls = (pool.enqueue_job("echo", TEXT) for _ in range(min(CHUNK, num - start)))
        keys += [f"arq:result:{job.job_id}" for job in await asyncio.gather(*calls) if job is not None]
    return keys


async def round_trip(pool: ArqRedis) -> None:
    job = await pool.enqueue_job("echo", TEXT)
    assert job is not None
    await job.result(timeout=30, poll_delay=POLL_S / 2)


def main() -> None:
    args = parse_arguments()
    if args.serve:
        serve(args.redis)
        return
    loop = asyncio.new_event_loop()
    pool = loop.run_until_complete(create_pool(RedisSettings.from_dsn(args.redis)))
    rival = Rival(
        name="arq",
        module=MODULE,
        packages=["arq", "redis", "hiredis"],
        client=redis.Redis.from_url(args.redis),
        enqueue=lambda num: loop.run_until_complete(enqueue(pool, num)),
        round_trip=lambda: loop.run_until_complete(round_trip(pool)),
    )
    obey(rival, args.redis)


if __name__ == "__main__":
    main()
