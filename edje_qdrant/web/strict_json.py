"""JSON of requests: read strictly, so that nothing is changed in silence on the way in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from edje_qdrant.index import json_integer
from edje_qdrant.web.errors import RequestError

__all__ = ["StrictRoute", "read_json"]

_SHOWN = 20  # characters of a number in a message


def read_json(text: str | bytes) -> Any:
    """Parse JSON, and refuse what Python's parser reads though it cannot be kept as it is.

    Raises:
        ValueError: The text is not JSON in UTF-8; or it holds NaN, Infinity, a number beyond 64
            bits, or half of a surrogate pair; or it is nested too deep.
    """
    decoded = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        value = json.loads(
            decoded, parse_constant=_constant, parse_int=json_integer, parse_float=_number
        )
        # Half of a pair can be written as an escape, and is no character. Writing takes several
        # times as long as reading, and large bodies hold images, without escapes.
        if decoded is text or "\\u" in decoded:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise ValueError(f"it holds {half}, half of a surrogate pair, which is no text") from error
    return value


class StrictRoute(APIRoute):
    """Route whose JSON body is read by `read_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of the route's requests."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


class _StrictRequest(Request):
    async def json(self) -> Any:
        try:
            return read_json(await self.body())
        except ValueError as error:
            message = f"the body is not JSON that can be read: {_reason(error)}"
            raise RequestError(422, "InvalidRequest", message) from error


def _reason(error: ValueError) -> str:
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:_SHOWN]} is beyond the range of numbers")
    return number
