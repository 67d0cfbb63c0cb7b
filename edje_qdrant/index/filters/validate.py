"""Checks of qdrant-client's filters, the same for every engine.

Refuses what the engines interpret differently or ignore silently: a condition with two tests, a
range without a bound, a number that is not finite, one from 2^53 on.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.filters.field_paths import filter_path, require_integer, require_text

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = [
    "KINDS",
    "check_conditions",
    "check_range_index",
    "clauses",
    "has_condition",
    "unsupported",
]

#: Tests of a condition on a field, of which it has exactly one.
KINDS = (
    "match",
    "range",
    "geo_bounding_box",
    "geo_radius",
    "geo_polygon",
    "values_count",
    "is_empty",
    "is_null",
)

_MATCHES = {
    "MatchValue": "value",
    "MatchAny": "any",
    "MatchExcept": "except_",
    "MatchText": "text",
    "MatchTextAny": "text_any",
    "MatchPhrase": "phrase",
    "MatchPrefix": "prefix",
    "MatchSubstring": "substring",
}
_BOUNDS = ("gte", "gt", "lte", "lt")

# Depth of nested filters. A server reads JSON four times as deep; this code recurses into them.
_DEEPEST = 32

# Bounds of a range are floats, which hold every whole number below 2^53. From there on a bound is
# rounded before it arrives here, and engines compare rounded values. A value beyond any smaller
# bound stays beyond it when rounded.
_ROUNDED = 2**53

# Points of a closed ring, at least: three corners, and the first again.
_RING = 4


def clauses(filter: models.Filter, where: str) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Yield the name of each clause, and its conditions with the place of each in the filter."""
    for name in ("must", "should", "must_not", "min_should"):
        clause = getattr(filter, name)
        if clause is None:
            continue
        given = clause.conditions if name == "min_should" else clause
        listed = given if isinstance(given, list) else [given]
        yield name, [(f"{where}.{name}[{n}]", condition) for n, condition in enumerate(listed)]


def has_condition(filter: models.Filter) -> bool:
    """Return whether the filter contains a condition, at any depth."""
    return any(
        type(condition).__name__ != "Filter" or has_condition(condition)
        for _, conditions in clauses(filter, "")
        for _, condition in conditions
    )


def check_conditions(
    filter: models.Filter, where: str = "filter", *, in_element: bool = False
) -> None:
    """Check that every engine accepts the filter and interprets it alike.

    Args:
        filter: What to check.
        where: Its name in messages.
        in_element: Whether it is about a list's elements, not about points.

    Raises:
        ConfigError: It names the reserved key, or contains what cannot be filtered by; names the
            condition.
    """
    if where.count("[") > _DEEPEST:
        raise ConfigError(
            f"filter holds filters in filters, more than {_DEEPEST} deep; write it flatter"
        )
    if filter.min_should is not None and filter.min_should.min_count < 1:
        raise ConfigError(
            f"{where}.min_should has the min_count {filter.min_should.min_count}; ask for 1 or more"
        )
    for name, conditions in clauses(filter, where):
        if not conditions and (in_element or name == "min_should"):
            # Inside a nested condition the engines differ on whether this means all or none.
            raise ConfigError(f"{where}.{name} is an empty list; leave it out, or fill it")
        for place, condition in conditions:
            kind = type(condition).__name__
            if kind not in _CHECKS:
                raise ConfigError(
                    f"{place} is a {kind}, which this version cannot filter by; use one of "
                    f"{', '.join(sorted(_CHECKS))}"
                )
            _CHECKS[kind](condition, place, in_element)


def check_range_index(condition: Any, kind: str | None, where: str) -> None:
    """Check that a field's index can be asked for a range.

    By an index of dates, engines find dates for a range of numbers, and the other way round.

    Args:
        condition: A condition with a range.
        kind: Kind of the field's payload index; None if it has none.
        where: The condition's place, for messages.

    Raises:
        ConfigError: The index is for the other kind of range.
    """
    numbers = type(condition.range).__name__ == "Range"
    if (numbers and kind == "datetime") or (not numbers and kind in ("integer", "float")):
        asked, fit = ("numbers", "float") if numbers else ("dates", "datetime")
        instead = "dates, such as 2024-06-01" if numbers else "numbers"
        raise ConfigError(
            f"{where}.range on {condition.key!r} asks for {asked}, but the field has a payload "
            f"index of kind {kind}, which takes them for something else; compare with {instead}, "
            f"or index the field as {fit}, if that is what it holds"
        )


def unsupported(where: str, kind: str, engine: str, remedy: str) -> ConfigError:
    """Return the error that an engine lacks a condition.

    Args:
        where: The condition's place.
        kind: Its class.
        engine: The engine, for the message.
        remedy: What to do in place of leaving it out.
    """
    return ConfigError(
        f"{where} is a {kind}, which {engine} cannot filter by; leave it out, or {remedy}"
    )


def _check_field(condition: Any, where: str, in_element: bool) -> None:
    _check_key(condition.key, where, in_element)
    asked = [kind for kind in KINDS if getattr(condition, kind) is not None]
    if len(asked) != 1:
        raise ConfigError(
            f"{where} on {condition.key!r} asks for {' and '.join(asked) or 'nothing'}; give one "
            f"of {', '.join(KINDS)} in each condition, and several conditions in a list"
        )
    value = getattr(condition, asked[0])
    if asked[0] not in ("is_empty", "is_null"):
        _KIND_CHECKS[asked[0]](value, f"{where}.{asked[0]} on {condition.key!r}")


def _check_key(key: str, where: str, in_element: bool) -> None:
    filter_path(key, f"{where}: key", reserved=not in_element)


def _check_match(match: Any, where: str) -> None:
    kind = type(match).__name__
    if kind not in _MATCHES:
        raise ConfigError(
            f"{where} is a {kind}, which this version cannot filter by; use one of "
            f"{', '.join(_MATCHES)}"
        )
    given = getattr(match, _MATCHES[kind])
    for value in given if isinstance(given, list) else [given]:
        if isinstance(value, str):
            require_text(value, where)
        if isinstance(value, int):
            require_integer(value, where)


def _check_bounds(bounded: Any, where: str) -> None:
    bounds = {name: getattr(bounded, name) for name in _BOUNDS}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    if not given:
        raise ConfigError(f"{where} has no bound; give one of {', '.join(_BOUNDS)}")
    for name, bound in given.items():
        if isinstance(bound, int | float):
            _check_number(bound, f"{where}: {name}")


def _check_range(asked: Any, where: str) -> None:
    _check_bounds(asked, where)
    for name in _BOUNDS:
        bound = getattr(asked, name)
        if isinstance(bound, int | float) and abs(bound) >= _ROUNDED:
            raise ConfigError(
                f"{where}: {name} is {bound:.0f}; from 2^53 (9007199254740992) on, numbers are "
                "rounded and a range would take neighbours for equal. Store moments as text, such "
                "as 2024-05-17T10:00:00Z, for a range of dates, or in larger units; ids can be "
                "matched exactly"
            )


def _check_count(count: Any, where: str) -> None:
    _check_bounds(count, where)
    for name in _BOUNDS:
        bound = getattr(count, name)
        if bound is not None and not 0 <= bound < 2**63:
            raise ConfigError(f"{where}: {name} is {bound}; a number of values is 0 or more")


def _check_box(box: Any, where: str) -> None:
    _check_corner(box.top_left, f"{where}: top_left")
    _check_corner(box.bottom_right, f"{where}: bottom_right")


def _check_circle(circle: Any, where: str) -> None:
    _check_corner(circle.center, f"{where}: center")
    _check_number(circle.radius, f"{where}: radius")
    if circle.radius < 0:
        raise ConfigError(f"{where}: radius is {circle.radius}; give meters, 0 or more")


def _check_polygon(polygon: Any, where: str) -> None:
    rings = {"exterior": polygon.exterior}
    rings |= {f"interiors[{n}]": ring for n, ring in enumerate(polygon.interiors or [])}
    for name, ring in rings.items():
        for number, point in enumerate(ring.points):
            _check_corner(point, f"{where}: {name}.points[{number}]")
        if len(ring.points) < _RING or ring.points[0] != ring.points[-1]:
            raise ConfigError(
                f"{where}: {name} is no closed ring; give three points or more, and the first of "
                "them again as the last"
            )


def _check_corner(point: Any, where: str) -> None:
    if not (-180 <= point.lon <= 180 and -90 <= point.lat <= 90):  # NaN fails too
        raise ConfigError(
            f"{where} is lon {point.lon}, lat {point.lat}; lon goes from -180 to 180, lat from "
            "-90 to 90"
        )


def _check_number(number: float, where: str) -> None:
    if not math.isfinite(
        number
    ):  # JSON has no such number: a server would get null and ignore the bound
        raise ConfigError(f"{where} is {number}; give a finite number, or leave it out")


def _check_named(condition: Any, where: str, in_element: bool) -> None:
    named = getattr(condition, "is_empty", None) or condition.is_null
    _check_key(named.key, where, in_element)


def _check_ids(condition: Any, where: str, in_element: bool) -> None:
    _check_of_point(condition, where, in_element)
    for image_id in condition.has_id:
        try:
            known = isinstance(image_id, uuid.UUID) or bool(uuid.UUID(image_id))
        except (ValueError, AttributeError, TypeError):
            known = False
        if not known:
            raise ConfigError(f"{where}.has_id holds {image_id!r}, which is no UUID string")


def _check_of_point(condition: Any, where: str, in_element: bool) -> None:
    if in_element:
        raise ConfigError(
            f"{where} is a {type(condition).__name__}, which speaks of a point and not of an "
            "element of a list; put it beside the nested condition"
        )


def _check_nested(condition: Any, where: str, in_element: bool) -> None:
    nested = condition.nested
    _check_key(nested.key, f"{where}.nested", in_element)
    check_conditions(nested.filter, f"{where}.nested.filter", in_element=True)


def _check_inner(condition: Any, where: str, in_element: bool) -> None:
    check_conditions(condition, where, in_element=in_element)


_KIND_CHECKS: dict[str, Callable[[Any, str], None]] = {
    "match": _check_match,
    "range": _check_range,
    "geo_bounding_box": _check_box,
    "geo_radius": _check_circle,
    "geo_polygon": _check_polygon,
    "values_count": _check_count,
}
_CHECKS: dict[str, Callable[[Any, str, bool], None]] = {
    "FieldCondition": _check_field,
    "Filter": _check_inner,
    "HasIdCondition": _check_ids,
    "HasVectorCondition": _check_of_point,
    "IsEmptyCondition": _check_named,
    "IsNullCondition": _check_named,
    "NestedCondition": _check_nested,
    "SliceCondition": _check_of_point,
}
