"""Filters: a plain dict, or qdrant-client's own filter."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.filters.field_paths import nested_path, require_integer, require_text
from edje_qdrant.index.filters.validate import check_conditions, has_condition
from edje_qdrant.index.moments import moment_text

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = ["Filter", "check_filter", "given_filter", "qdrant_filter", "require_filter"]

#: Payload field -> the value it must equal, or a list of which it must equal any; all keys must
#: match. Dots name nested fields: `{"album": "2024", "camera.year": [2023, 2024], "ok": True}`.
#: Values are str, int or bool, and never equal a value of another type: 1 is neither True nor
#: 1.0. A date or time stands for the text that is stored for it, see `moment_text`.
#: A field that holds a list matches if any of its items does. `{}` means every point.
#: For anything else (ranges, places, words, or, not) give a `qdrant_client.models.Filter`.
Filter: TypeAlias = "Mapping[str, Any] | models.Filter"

# What one condition of an engine compares with: one value, or several of one type.
_Match: TypeAlias = "str | int | list[str] | list[int]"


def check_filter(filter: Filter | None) -> dict[str, list[_Match]]:
    """Return field path -> comparisons, of which any must hold, for a dict or None.

    Raises:
        ConfigError: It is not a dict, or a key or a value cannot be filtered by; names the key.
    """
    if filter is None:
        return {}
    if not isinstance(filter, Mapping):
        raise ConfigError(
            f"filter is a {type(filter).__name__}; give a dict of payload field and value, such "
            "as {'album': '2024'}, or a qdrant_client.models.Filter"
        )
    return {nested_path(key, "filter key"): _matches(key, value) for key, value in filter.items()}


def require_filter(filter: Filter | None) -> None:
    """Check that a filter has a condition, so that it need not match every point.

    Raises:
        ConfigError: It is None or empty.
    """
    if _is_given(filter):
        everything = not has_condition(filter)
    else:
        everything = filter is None or (isinstance(filter, Mapping) and not filter)
    if everything:
        raise ConfigError(
            f"filter is {filter!r}, which means every point: this would delete everything; name "
            "a field and its value, or delete the whole collection if that is meant"
        )


def qdrant_filter(filter: Filter | None) -> models.Filter | None:
    """Convert a filter to qdrant-client's; None for every point.

    Raises:
        ConfigError: It cannot be filtered by; names the place.
    """
    from qdrant_client.models import FieldCondition, Filter, MatchAny, MatchValue

    given = given_filter(filter)
    if given is not None:
        return given
    must: list[Any] = []
    for path, matches in check_filter(filter).items():
        either = [
            FieldCondition(
                key=path, match=MatchAny(any=m) if isinstance(m, list) else MatchValue(value=m)
            )
            for m in matches
        ]
        must.append(either[0] if len(either) == 1 else Filter(should=[*either]))
    return Filter(must=must) if must else None


def given_filter(filter: Filter | None) -> models.Filter | None:
    """Check qdrant-client's own filter and return it; None for any other.

    Raises:
        ConfigError: It contains what cannot be filtered by; names the place.
    """
    if not _is_given(filter):
        return None
    check_conditions(filter)
    return filter


def _is_given(filter: Filter | None) -> TypeGuard[models.Filter]:
    if filter is None or isinstance(filter, Mapping):
        return False  # without importing qdrant-client, which takes long
    from qdrant_client import models

    return isinstance(filter, models.Filter)


def _matches(key: str, value: Any) -> list[_Match]:
    """Group the values by type, as an engine compares with a list of one type only."""
    values = [*value] if isinstance(value, list | tuple) else [value]
    if not values:
        raise ConfigError(
            f"filter key {key!r} has an empty list, which nothing equals; give a value, or leave "
            "the key out"
        )
    for place, each in enumerate(values):
        _check_value(key, each)
        if isinstance(each, date):
            values[place] = moment_text(each)
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
        require_text(value, where)
    elif isinstance(value, int):
        require_integer(value, where)
    elif isinstance(value, date):
        try:
            moment_text(value)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
    elif isinstance(value, float | np.floating):
        raise ConfigError(
            f"{where} asks for {value!r}, but floats cannot be compared for equality; store a "
            "whole number or text with the images, and filter by that"
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
            "True or False, a date or time, or one list of these"
        )
