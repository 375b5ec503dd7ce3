"""A producer that knows nothing of tokenmill: redis-py, one XADD, then XREAD until the final entry.

    python examples/raw_redis.py "Why is the sky blue?" --max-tokens 64

Exit codes: 0 answered, 1 the request failed or was cancelled, 4 no final entry in time.
"""

import argparse
import json
import os
import sys
import time
from typing import Any  # redis-py's types leave open what a reply is

import redis

BLOCK_MS = 5_000  # how long one XREAD may wait; the connection must live longer than that
Entry = tuple[str, dict[str, str]]  # its id, its fields
FINAL = {"done", "error", "cancelled", "expired"}


def enqueue(server: "redis.Redis", queue: str, body: dict[str, object]) -> str:
    """Adds one request to the normal lane; returns the key of its answer."""
    entry_id: Any = server.xadd(f"tm:{{{queue}.0}}:in:2", {"body": json.dumps(body)})
    return f"tm:{{{queue}.0}}:r:2-{entry_id}"  # no id was given, so the request is called <lane>-<entry id>


def follow(server: "redis.Redis", key: str, *, timeout_s: float) -> dict[str, str]:
    """Prints the answer as it grows; returns the final entry. TimeoutError when it does not come."""
    after, deadline = "0", time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for entry_id, fields in read(server, key, after):
            after = entry_id  # reading on from here loses nothing and repeats nothing, also after a reconnect
            if fields["type"] in FINAL:
                return fields
            show(fields)
    raise TimeoutError(f"no final entry in {key} within {timeout_s:g} s: is a worker running?")


def read(server: "redis.Redis", key: str, after: str) -> list[Entry]:
    """What came after that entry; waits for it up to BLOCK_MS."""
    reply: Any = server.xread({key: after}, block=BLOCK_MS)
    return reply[0][1] if reply else []


def show(fields: dict[str, str]) -> None:
    if fields["type"] == "reset":  # another model took over and starts again: what was printed is void
        print("\n-- starts again --")
    else:
        print(fields["text"], end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--queue", default=os.environ.get("TOKENMILL_QUEUE", "default"))
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds")
    options = parser.parse_args()

    url = os.environ.get("TOKENMILL_REDIS_URL", "redis://localhost:6379/0")
    server = redis.Redis.from_url(url, decode_responses=True, socket_timeout=2 * BLOCK_MS / 1000)
    messages = [{"role": "user", "content": options.prompt}]
    key = enqueue(server, options.queue, {"messages": messages, "max_tokens": options.max_tokens})
    try:
        final = follow(server, key, timeout_s=options.timeout)
    except TimeoutError as error:
        print(error, file=sys.stderr)
        return 4
    print()
    if final["type"] != "done":
        print(f"{final['type']}: {final.get('error', '')}", file=sys.stderr)
        return 1
    usage = json.loads(final["usage"])
    print(f"{final['finish_reason']}, {usage['completion_tokens']} tokens, {key}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
