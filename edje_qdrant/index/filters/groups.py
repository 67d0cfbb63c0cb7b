"""Fields that group images: their values, and filters that exclude groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from edje_qdrant.index.filters.field_paths import nested_path
from edje_qdrant.index.filters.filter import Filter, qdrant_filter

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = ["beyond_groups", "check_group_field", "field_value", "is_group"]


def check_group_field(field: str) -> str:
    """Check the name of a field that groups images; dots name nested fields.

    Raises:
        ConfigError: It is not a valid name, or the reserved key.
    """
    nested_path(field, "group_by")
    return field


def field_value(payload: Mapping[str, Any], field: str) -> Any:
    """Return a payload's value of a field; None if there is none. Dots name nested fields."""
    value: Any = payload
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def is_group(value: Any) -> TypeGuard[str | int]:
    """Return whether the engines can compare with a value: text, a whole number or a bool."""
    return isinstance(value, str | int)


def beyond_groups(
    filter: Filter | None, field: str, groups: Sequence[str | int], seen: Sequence[str]
) -> models.Filter:
    """Return a filter that matches what `filter` does, without some groups and some images.

    Raises:
        ConfigError: The filter or the field cannot be used.
    """
    from qdrant_client import models

    path = nested_path(field, "group_by")
    left_out: list[Any] = [models.HasIdCondition(has_id=[*seen])]
    texts = [group for group in groups if isinstance(group, str)]
    truths = [group for group in groups if isinstance(group, bool)]
    numbers = [g for g in groups if isinstance(g, int) and not isinstance(g, bool)]
    left_out += [
        models.FieldCondition(key=path, match=models.MatchAny(any=several))
        for several in (texts, numbers)
        if several
    ]
    left_out += [
        models.FieldCondition(key=path, match=models.MatchValue(value=truth)) for truth in truths
    ]
    chosen = qdrant_filter(filter)
    return models.Filter(must=[chosen] if chosen else None, must_not=left_out)
