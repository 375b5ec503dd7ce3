"""Every error as OpenAI's clients expect it: `{"error": {message, type, param, code}}` and a status. Knows no route."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tokenmill.wire.errors import (
    ConflictError,
    DecodeError,
    InvalidRequestError,
    JobLostError,
    PartitionsError,
    QueueBusyError,
    RequestFailedError,
    ResultTimeoutError,
    TokenmillError,
    UnavailableError,
    UnknownRequestError,
)

logger = logging.getLogger("tokenmill.gateway")

INVALID = "invalid_request_error"
SERVER = "server_error"

# What a worker says of a request that it refuses, and what is the client's own mistake in it.
_REFUSALS = {"model_not_found": 404, "too_large": 413}
_FAULTS_OF_OURS = frozenset(
    ("lost", "worker_crashed", "engine_error", "internal_error", "out_of_memory", "non_finite_logits", "error")
)


class ApiError(Exception):
    """An answer that is an error. `code` is stable for programs, `param` names the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def api_error(error: TokenmillError) -> ApiError:
    """The answer that one of our own errors means."""
    if isinstance(error, ConflictError):
        return ApiError(409, str(error), param=error.param, code=error.code)
    if isinstance(error, InvalidRequestError):
        return ApiError(_REFUSALS.get(error.code, 400), str(error), param=error.param, code=error.code)
    if isinstance(error, QueueBusyError):
        retry = {"Retry-After": str(max(1, round(error.retry_after_s)))}
        return ApiError(429, str(error), kind="rate_limit_error", code="queue_full", headers=retry)
    if isinstance(error, RequestFailedError):
        return failure(error.code, error.completion.error.message if error.completion.error else str(error))
    if isinstance(error, UnknownRequestError):
        return ApiError(404, str(error), code="not_found")
    if isinstance(error, ResultTimeoutError):
        return ApiError(504, str(error), kind=SERVER, code="timeout")
    return _server_error(error)


def failure(code: str, message: str) -> ApiError:
    """The answer to a request whose final word is an error with this code."""
    if code in _FAULTS_OF_OURS:
        return ApiError(500, message, kind=SERVER, code=code)
    return ApiError(_REFUSALS.get(code, 400), message, code=code)


def _server_error(error: TokenmillError) -> ApiError:
    if isinstance(error, UnavailableError):
        retry = {"Retry-After": "1"}
        return ApiError(503, "the queue's server does not answer", kind=SERVER, code="unavailable", headers=retry)
    if isinstance(error, JobLostError):
        return ApiError(500, str(error), kind=SERVER, code="lost")
    if isinstance(error, PartitionsError):
        return ApiError(503, str(error), kind=SERVER, code="partitions")
    code = "broken_result" if isinstance(error, DecodeError) else "internal"
    return ApiError(500, str(error), kind=SERVER, code=code)


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(TokenmillError, _on_own_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_unexpected)


async def _on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _on_own_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TokenmillError)
    answer = api_error(error)
    if answer.status >= 500:
        logger.error("%s %s: %s", request.method, request.url.path, error)
    return answer.response()


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    """The first field at fault, by its path; never its value, which may be a prompt."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where, *path = first["loc"]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json").response()
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".") or None
    reason = first["msg"].removeprefix("Value error, ")
    message = f"{param}: {reason}" if param else f"the {where} is wrong: {reason}"
    return ApiError(400, message, param=param, code="invalid_value").response()


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Those that the framework raises itself: no such path, wrong method, a body that is too large."""
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"there is no {request.method} {request.url.path} here; docs/gateway.md lists what there is"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} knows no {request.method}"
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return ApiError(error.status_code, message, code=code, headers=error.headers).response()


async def _on_unexpected(request: Request, error: Exception) -> JSONResponse:
    """A bug of ours: the server logs its traceback; the client learns nothing of our insides."""
    return ApiError(500, "an error of the gateway's own; its log says more", kind=SERVER, code="internal").response()
