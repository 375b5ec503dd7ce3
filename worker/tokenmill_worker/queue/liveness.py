"""Is a worker of this host alive? `python -m tokenmill_worker.queue.liveness`, a container's health check. No engine.

Exit code 0: one holds a lease. It does so only while it renews from a thread of its own and its device gets on, so the
lease says more than a process that exists. 1: none does, or the server did not answer.
"""

import socket
import sys
from typing import cast

import redis
from tokenmill.wire.errors import TokenmillError
from tokenmill.wire.keys import Keys, all_keys
from tokenmill.wire.store import connect

from tokenmill_worker.settings import SettingsError, WorkerSettings


def leases_of(host: str, client: redis.Redis, keys: Keys) -> list[str]:
    """Names of this host's workers whose lease runs on; a name is `<host>-<process>-<incarnation>`."""
    seconds, microseconds = client.time()
    alive = cast("list[bytes]", client.zrangebyscore(keys.workers, seconds * 1000 + microseconds // 1000, "+inf"))
    names = [name.decode() for name in alive]
    return [name for name in names if name.rsplit("-", 2)[0] == host]


def main() -> int:
    """Looks where the environment says that the worker works."""
    try:
        settings = WorkerSettings.read(None, {})
        leases = []
        for keys in all_keys(settings.queue, settings.partitions):
            with connect(settings.redis_url, key=keys.tag, retries=0) as client:
                leases += leases_of(socket.gethostname(), client, keys)
    except (SettingsError, TokenmillError, redis.RedisError) as error:
        sys.stdout.write(f"cannot tell: {error}\n")
        return 1
    sys.stdout.write(f"{', '.join(leases) or 'no lease'}\n")
    return 0 if leases else 1


if __name__ == "__main__":
    sys.exit(main())
