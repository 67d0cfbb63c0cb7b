"""Conditions of filters as people write them: `album=2024`, `year>=2020`, `place~38.7,-9.1,500`.

One syntax for the option `--where`, the service's `where` and the page.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from datetime import date
from typing import Any

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.filters.filter import Filter, qdrant_filter
from edje_qdrant.index.filters.from_json import filter_from_json
from edje_qdrant.index.validate import json_integer

__all__ = ["field_of", "filter_of"]

_COMPARED = re.compile(r"([^=<>~]+)(>=|<=|>|<|~)(.*)", re.DOTALL)
_BOUNDS = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt"}
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def field_of(text: str) -> tuple[str, Any]:
    """Read FIELD=VALUE; a value that is no JSON is text, and so is a number beyond 64 bits.

    Raises:
        ConfigError: The text has another form.
    """
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError(f"{text!r} is not of the form FIELD=VALUE")
    try:
        # NaN is not JSON.
        return name, json.loads(value, parse_constant=str, parse_int=_integer_or_text)
    except (ValueError, RecursionError):
        return name, value


def _integer_or_text(digits: str) -> int | str:
    try:
        return json_integer(digits)
    except ValueError:
        return digits


def filter_of(where: Sequence[str]) -> Filter:
    """Return the filter of several conditions: all fields, any of the values of each.

    Args:
        where: `FIELD=VALUE` with the value as JSON, else as text; `FIELD>=VALUE`, `FIELD<=VALUE`,
            `FIELD>VALUE` and `FIELD<VALUE` of numbers and dates; `FIELD~LAT,LON,METRES`. Spaces
            around a field and a value do not count.

    Raises:
        ConfigError: A text has another form, or its bound or place cannot be read.

    Example:
        >>> from edje_qdrant.index.where import filter_of
        >>> filter_of(["album=holidays", "album=2024", 'title="2024"'])
        {'album': ['holidays', 2024], 'title': ['2024']}
    """
    values: dict[str, list[Any]] = {}
    compared: list[dict[str, Any]] = []
    for text in where:
        found = _COMPARED.fullmatch(text)
        if found is not None:
            name, sign, bound = found.groups()
            compared.append(_comparison(text, name.strip(), sign, bound.strip()))
            continue
        name, separator, value = text.partition("=")
        name, value = field_of(f"{name.strip()}{separator}{value.strip()}")
        values.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    if not compared:
        return values
    both = filter_from_json({"must": compared})
    equal = qdrant_filter(values)
    return both if equal is None else both.model_copy(update={"must": [equal, both]})


def _comparison(text: str, name: str, sign: str, value: str) -> dict[str, Any]:
    """Return the condition of FIELD>=VALUE or FIELD~LAT,LON,METRES, in Qdrant's JSON."""
    if sign != "~":
        if _NUMBER.fullmatch(value) and math.isfinite(float(value)):
            return {"key": name, "range": {_BOUNDS[sign]: float(value)}}
        try:
            date.fromisoformat(value[:10])
        except ValueError:
            raise ConfigError(
                f"{text!r} compares with {value!r}; give a number, or a date such as 2024-06-01 "
                "or 2024-06-01T10:00:00Z"
            ) from None
        return {"key": name, "range": {_BOUNDS[sign]: value}}
    parts = [part.strip() for part in value.split(",")]
    if len(parts) != 3 or not all(_NUMBER.fullmatch(part) for part in parts):
        raise ConfigError(
            f"{text!r} is not of the form FIELD~LAT,LON,METRES, such as place~38.72,-9.14,10000"
        )
    lat, lon, metres = (float(part) for part in parts)
    if not (abs(lat) <= 90 and abs(lon) <= 180 and 0 < metres < math.inf):
        raise ConfigError(
            f"{text!r} names no place: a latitude is from -90 to 90, a longitude from -180 to 180, "
            "and a distance in metres above 0"
        )
    return {"key": name, "geo_radius": {"center": {"lat": lat, "lon": lon}, "radius": metres}}
