"""Whether the packages of the extra `web` are there; the other modules of the room import them."""

from __future__ import annotations

from edje_qdrant.errors import MissingExtraError

__all__ = ["check_installed"]


def check_installed() -> None:
    """Check that the packages of the extra `web` are installed.

    Raises:
        MissingExtraError: One is missing.
    """
    try:
        import fastapi
        import httpx
        import prometheus_client
        import python_multipart
        import uvicorn
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "web") from error
    del fastapi, httpx, prometheus_client, python_multipart, uvicorn
