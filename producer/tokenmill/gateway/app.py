"""The application, put together: routers, error handlers, and the state that they share. Knows no endpoint."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from tokenmill.gateway.auth import KeyBook
from tokenmill.gateway.errors import add_error_handlers
from tokenmill.gateway.guard import BodyGuard
from tokenmill.gateway.metrics import GatewayMetrics, Measured
from tokenmill.gateway.routes import (
    batches,
    chat,
    completions,
    embeddings,
    files,
    fleet,
    health,
    metrics,
    models,
    page,
    responses,
)
from tokenmill.gateway.settings import GatewaySettings
from tokenmill.gateway.state import Gateway

ROUTERS = (
    chat.router,
    completions.router,
    embeddings.router,
    responses.router,
    models.router,
    files.router,
    batches.router,
    health.router,
    metrics.router,
    fleet.router,
    page.router,
)


def create_app(settings: GatewaySettings) -> FastAPI:
    """Nothing is connected before the application starts, and nothing sent before the first request."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gateway = Gateway(settings, KeyBook(settings.redis_url) if settings.requires_keys else None)
        app.state.gateway = gateway
        gateway.spawn(asyncio.to_thread(gateway.desk.open))
        yield
        await app.state.gateway.close()

    app = FastAPI(title="tokenmill", summary="An OpenAI-compatible front door to a queue.", lifespan=lifespan)
    add_error_handlers(app)
    app.add_middleware(BodyGuard, settings=settings)
    for router in ROUTERS:
        app.include_router(router)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    _add_observers(app, settings)
    return app


def _add_observers(app: FastAPI, settings: GatewaySettings) -> None:
    """Outermost, so that they see every answer there is."""
    if settings.tracing:
        from tokenmill.gateway import tracing

        app.add_middleware(tracing.Traced, provider=tracing.provider_from_environment())
    app.state.metrics = GatewayMetrics()
    app.add_middleware(Measured, metrics=app.state.metrics)
