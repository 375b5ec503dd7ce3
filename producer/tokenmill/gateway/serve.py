"""Runs the application under uvicorn until it is told to stop. Knows no endpoint."""

import signal
import socket

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokenmill.gateway.app import create_app
from tokenmill.gateway.guard import guarded
from tokenmill.gateway.settings import GatewaySettings

BACKLOG = 4096  # connections that the kernel holds while we are busy: a thousand clients may come at once
DRAIN_S = 10  # that open requests have after SIGTERM; what is cut goes on when its client comes back


def config(settings: GatewaySettings) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(settings),
        http=guarded(HttpToolsProtocol, settings.head_timeout_s),
        host=settings.host,
        port=settings.port,
        backlog=BACKLOG,
        ws="none",
        log_level="warning",
        access_log=False,  # a path may hold an id, and a line for each request costs more than it tells
        timeout_graceful_shutdown=DRAIN_S,
        server_header=False,
    )


class Server(uvicorn.Server):
    """Ends what would never end by itself before it waits for what will."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        if isinstance(app, FastAPI) and hasattr(app.state, "gateway"):
            app.state.gateway.end_feeds()
        await super().shutdown(sockets)


def serve(settings: GatewaySettings) -> None:
    """Until SIGTERM. uvicorn raises that once more when everything is closed: so it must find a handler that stays."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    Server(config(settings)).run()
