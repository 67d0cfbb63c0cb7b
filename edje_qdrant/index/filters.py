"""Which points: a plain dict, turned into what each engine takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.paths import nested_path

if TYPE_CHECKING:
    import qdrant_edge
    from qdrant_client import models

__all__ = ["Filter", "check_filter", "edge_filter", "qdrant_filter", "require_filter"]

#: Payload field -> the value it must equal, or a list of which it must equal any; all keys must
#: hold. Dots name nested fields: `{"album": "2024", "camera.year": [2023, 2024], "ok": True}`.
#: Values are str, int or bool, and none of them equals one of another type: 1 is neither True nor
#: 1.0. A field that holds a list equals what any of its items equals. `{}` means every point.
Filter: TypeAlias = Mapping[str, Any]

# What one condition of an engine can compare with: one value, or several of one type.
_Match: TypeAlias = "str | int | list[str] | list[int]"


def check_filter(filter: Filter | None) -> dict[str, list[_Match]]:
    """Return field path -> what it is to be compared with; any of these must hold for it.

    Raises:
        ConfigError: It is no dict, or a key or a value cannot be filtered by; names the key.
    """
    if filter is None:
        return {}
    if not isinstance(filter, Mapping):
        raise ConfigError(
            f"filter is a {type(filter).__name__}; give a dict of payload field and value, such "
            "as {'album': '2024'}"
        )
    return {nested_path(key, "filter key"): _matches(key, value) for key, value in filter.items()}


def require_filter(filter: Filter | None) -> None:
    """Check that a filter leaves some points out, as far as can be told.

    Raises:
        ConfigError: It is None or empty.
    """
    if filter is None or (isinstance(filter, Mapping) and not filter):
        raise ConfigError(
            f"filter is {filter!r}, which means every point: this would delete everything; name "
            "a field and its value, or delete the whole collection if that is meant"
        )


def edge_filter(filter: Filter | None) -> qdrant_edge.Filter | None:
    """Return the embedded engine's filter, None for every point.

    Raises:
        ConfigError: It is no dict, or a key or a value cannot be filtered by; names the key.
    """
    from qdrant_edge import FieldCondition, Filter, MatchAny

    checked = check_filter(filter)
    must: list[Any] = []
    for path, matches in checked.items():
        either = [
            FieldCondition(path, match=MatchAny(m) if isinstance(m, list) else _edge_value(m))
            for m in matches
        ]
        must.append(either[0] if len(either) == 1 else Filter(should=[*either]))
    return Filter(must=must) if must else None


def qdrant_filter(filter: Filter | None) -> models.Filter | None:
    """Return the client's filter, None for every point.

    Raises:
        ConfigError: It is no dict, or a key or a value cannot be filtered by; names the key.
    """
    from qdrant_client.models import FieldCondition, Filter, MatchAny, MatchValue

    checked = check_filter(filter)
    must: list[Any] = []
    for path, matches in checked.items():
        either = [
            FieldCondition(
                key=path, match=MatchAny(any=m) if isinstance(m, list) else MatchValue(value=m)
            )
            for m in matches
        ]
        must.append(either[0] if len(either) == 1 else Filter(should=[*either]))
    return Filter(must=must) if must else None


def _edge_value(value: str | int) -> qdrant_edge.MatchValue:
    from qdrant_edge import MatchValue

    if not isinstance(value, bool):
        return MatchValue(value)
    # The engine's binding takes Python's True for the number 1, but not NumPy's.
    match = MatchValue(np.bool_(value))  # type: ignore[arg-type]
    if not isinstance(match.value, bool):
        raise ConfigError(
            "an embedded collection can be filtered by True and False with NumPy 2 only; "
            "run: pip install 'numpy>=2'"
        )
    return match


def _matches(key: str, value: Any) -> list[_Match]:
    """Sort the values by type, as an engine compares with a list of one type only."""
    values = [*value] if isinstance(value, list | tuple) else [value]
    if not values:
        raise ConfigError(
            f"filter key {key!r} has an empty list, which nothing equals; give a value, or leave "
            "the key out"
        )
    for each in values:
        _check_value(key, each)
    texts = [each for each in values if isinstance(each, str)]
    truths = [each for each in values if isinstance(each, bool)]
    numbers = [each for each in values if isinstance(each, int) and not isinstance(each, bool)]
    matches: list[_Match] = [*truths]
    if texts:
        matches.append(texts if len(texts) > 1 else texts[0])
    if numbers:
        matches.append(numbers if len(numbers) > 1 else numbers[0])
    return matches


def _check_value(key: str, value: Any) -> None:
    where = f"filter key {key!r}"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{where} asks for {value!r}, which is no text: {error}") from error
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ConfigError(
                f"{where} asks for {value}, which has more than 64 bits; store such numbers as text"
            )
    elif isinstance(value, float | np.floating):
        raise ConfigError(
            f"{where} asks for {value!r}, but floats cannot be compared for equality; store a "
            "whole number or text with the pictures, and filter by that"
        )
    elif value is None:
        raise ConfigError(
            f"{where} asks for None, but what is missing cannot be filtered by; store a value "
            "that says so, such as False, or leave the key out"
        )
    elif isinstance(value, Mapping):
        inner = next(iter(value), "name")
        raise ConfigError(
            f"{where} asks for an object; name the field in it, with a dot: '{key}.{inner}'"
        )
    else:
        raise ConfigError(
            f"{where} asks for {value!r}, a {type(value).__name__}; give text, a whole number, "
            "True or False, or one list of these"
        )
