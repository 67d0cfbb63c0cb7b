"""Filters that come as text: in a form, or in an address."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from edje_qdrant.errors import ConfigError
from edje_qdrant.web.schemas import FilterDict
from edje_qdrant.web.strict_json import read_json

__all__ = ["read_filter"]

_FILTER: TypeAdapter[dict[str, Any]] = TypeAdapter(FilterDict)


def read_filter(text: str | None) -> dict[str, Any] | None:
    """Return the filter of a JSON text; None for none, or an empty one.

    Raises:
        ConfigError: It is not a JSON object of fields and values.
    """
    if not text:
        return None
    try:
        return _FILTER.validate_python(read_json(text), strict=True) or None
    except ValueError as error:
        message = 'filter must be a JSON object of fields and values, such as {"album": "a"}'
        raise ConfigError(message) from error
