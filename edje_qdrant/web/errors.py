"""Error responses: a status and a JSON body `{error, message, detail, request_id}`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from edje_qdrant.errors import (
    BusyError,
    CollectionLockedError,
    CollectionNotFoundError,
    ConfigError,
    ContractMismatchError,
    EdjeError,
    EngineUnavailableError,
    ImageReadError,
    ImagesNotFoundError,
    KeyRefusedError,
    MissingExtraError,
    RateLimitedError,
    TokensNotFoundError,
    without_long_values,
)

__all__ = ["RequestError", "add_error_handlers", "error_response", "index_away"]

_log = logging.getLogger("edje_qdrant.web")

# Server-side errors: the client gets these messages, the log gets the details.
_SERVER_MESSAGES = {
    503: "the collection is open in another process at the moment; try again later",
    500: "the collection or the model is damaged; the server's log says where",
}
_HTTP_NAMES = {
    400: "BadRequest",
    404: "NotFound",
    405: "MethodNotAllowed",
    413: "TooLarge",
    415: "UnsupportedMediaType",
}


class RequestError(HTTPException):
    """Request that is refused: HTTP status, error name for programs, message for people."""

    def __init__(
        self, status: int, error: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.error = error


def error_response(
    status: int,
    error: str,
    message: str,
    request_id: str,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Build the response of an error."""
    # A name from the request, in the message, may hold what cannot be encoded.
    message = without_long_values(message.encode("utf-8", "backslashreplace").decode("utf-8"))
    # Clients of other services read `detail`.
    body = {"error": error, "message": message, "detail": message, "request_id": request_id}
    return JSONResponse(body, status, headers=dict(headers or {}))


def add_error_handlers(app: FastAPI) -> None:
    """Register handlers that give every error of an app the same JSON form."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _request_error)
    app.add_exception_handler(EdjeError, _edje_error)
    app.add_exception_handler(BusyError, _busy)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    parts = []
    for problem in error.errors()[:5]:
        place = ".".join(str(part) for part in problem["loc"] if part != "body")
        said = problem["msg"].removeprefix("Value error, ")
        parts.append(f"{place or 'the body'}: {said}")
    return _response(request, 422, "InvalidRequest", "; ".join(parts))


async def _request_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    name = error.error if isinstance(error, RequestError) else None
    name = name or _HTTP_NAMES.get(error.status_code, "HttpError")
    return _response(request, error.status_code, name, str(error.detail), error.headers)


def _index_refusal(error: Exception) -> RequestError | None:
    """Return the answer to a request that the index could not serve; None for another error."""
    if isinstance(error, RateLimitedError):
        seconds = max(1, math.ceil(error.retry_after or 1))
        message = f"the index takes no more requests for now; try again in {seconds} s"
        return _refusal(429, error, message, seconds)
    if isinstance(error, EngineUnavailableError):
        return _refusal(503, error, "the index does not answer; try again in a moment")
    if isinstance(error, KeyRefusedError):
        message = (
            "the server of the index refuses this request of the service's key; the log says why"
        )
        return _refusal(503, error, message)
    if isinstance(error, CollectionNotFoundError):
        return _refusal(
            503,
            error,
            "the collection is gone: it was deleted or renamed on the server of the index; "
            "searches work again once it is back",
        )
    return None


def index_away(error: Exception) -> RequestError:
    """Return the answer to a request that needs the index, if a probe of it raised an error."""
    refusal = _index_refusal(error)
    if isinstance(error, ContractMismatchError):
        message = (
            "the collection was replaced by another model's; a service with --follow-alias changes "
            "to it, others have to be started again"
        )
        return _refusal(503, error, message)
    if refusal is None:
        message = "the index cannot be read; the log of the service says why"
        return _refusal(503, EngineUnavailableError(message), message)
    return refusal


def _refusal(status: int, error: Exception, message: str, seconds: int = 1) -> RequestError:
    return RequestError(status, type(error).__name__, message, {"Retry-After": str(seconds)})


async def _edje_error(request: Request, error: Exception) -> JSONResponse:
    refusal = _index_refusal(error)
    if refusal is not None:
        _log.error("request failed", exc_info=error, extra={"request_id": _request_id(request)})
        return await _request_error(request, refusal)
    status = _status_of(error)
    if isinstance(error, ContractMismatchError):
        _log.error("request failed", exc_info=error, extra={"request_id": _request_id(request)})
        message = "images here were written by another model; the log of the service says which"
        return _response(request, status, type(error).__name__, message)
    headers = {"Retry-After": "5"} if status == 503 else {}
    if status in _SERVER_MESSAGES:
        _log.error("request failed", exc_info=error, extra={"request_id": _request_id(request)})
        return _response(request, status, type(error).__name__, _SERVER_MESSAGES[status], headers)
    return _response(request, status, type(error).__name__, str(error), headers)


async def _busy(request: Request, _error: Exception) -> JSONResponse:
    message = "too many searches are waiting; try again in a second"
    return _response(request, 503, "Busy", message, {"Retry-After": "1"})


def _status_of(error: Exception) -> int:
    if isinstance(error, ImagesNotFoundError | TokensNotFoundError):
        return 404
    if isinstance(error, ConfigError):
        return 400
    if isinstance(error, ImageReadError):
        return 422
    if isinstance(error, MissingExtraError):
        return 501
    if isinstance(error, CollectionLockedError):
        return 503
    return 500


def _response(
    request: Request,
    status: int,
    error: str,
    message: str,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    return error_response(status, error, message, _request_id(request), headers)


def _request_id(request: Request) -> str:
    return str(request.scope.get("request_id", ""))
