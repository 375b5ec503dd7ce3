"""A gateway that listens on a free port, in a thread of this process. Knows no endpoint."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from tokenmill.gateway.serve import Server, config
from tokenmill.gateway.settings import GatewaySettings

from tests.support.waiting import wait_until


@dataclass(frozen=True)
class RunningGateway:
    """`url`: of its root; `app.state.gateway` has what its routes share."""

    url: str
    app: FastAPI
    settings: GatewaySettings

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


@contextlib.contextmanager
def running_gateway(**settings: Any) -> Iterator[RunningGateway]:
    """With these settings, until the block ends."""
    given = GatewaySettings(**{"port": 0, "early_error_s": 5.0} | settings)
    server = Server(config(given))
    thread = threading.Thread(target=server.run, name="gateway")
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), description="the gateway listens")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield RunningGateway(f"http://127.0.0.1:{port}", server.config.app, given)  # type: ignore[arg-type]  # it is ours
    finally:
        server.should_exit = True
        thread.join(timeout=30)
    assert not thread.is_alive(), "the gateway does not stop"
