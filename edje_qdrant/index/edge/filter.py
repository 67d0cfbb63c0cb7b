"""Conversion of filters into Qdrant Edge's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime, time, timezone
from typing import TYPE_CHECKING, Any, TypeAlias

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.filters.filter import Filter, check_filter, given_filter
from edje_qdrant.index.filters.validate import (
    KINDS,
    check_range_index,
    clauses,
    unsupported,
)

if TYPE_CHECKING:
    import qdrant_edge
    from qdrant_client import models

__all__ = ["edge_filter"]

_Indexes: TypeAlias = Callable[[], Mapping[str, str]]

# Degrees of a box, at most, and of the overlap of boxes.
_BOX_WIDTH = 120.0
_BOX_HEIGHT = 60.0
_OVERLAP = 1.0

# Degrees of a polygon, at most; polygons are not split.
_POLYGON_WIDTH = 359.9
_POLYGON_HEIGHT = 179.9


def edge_filter(filter: Filter | None, indexes: _Indexes = dict) -> qdrant_edge.Filter | None:
    """Convert a filter to Edge's; None for every point.

    Args:
        filter: What to convert.
        indexes: Return field path -> kind of every payload index; called for ranges only.

    Raises:
        ConfigError: It cannot be filtered by; names the place.
    """
    from qdrant_edge import FieldCondition, Filter, MatchAny

    given = given_filter(filter)
    if given is not None:
        return _edge_conditions(given, "filter", indexes)
    must: list[Any] = []
    for path, matches in check_filter(filter).items():
        either = [
            FieldCondition(path, match=MatchAny(m) if isinstance(m, list) else _edge_value(m))
            for m in matches
        ]
        must.append(either[0] if len(either) == 1 else Filter(should=[*either]))
    return Filter(must=must) if must else None


class _Truth:
    """Hold True or False."""

    def __init__(self, value: bool) -> None:
        self._value = value

    def __bool__(self) -> bool:
        return self._value


# The engine's binding converts Python's True to 1, and NumPy's too before NumPy 2.3, where
# it has `__index__`. It recognises NumPy's type by name; this one has the name and no `__index__`.
_EngineBool = type("bool_", (_Truth,), {"__module__": "numpy"})


def _edge_value(value: str | int) -> qdrant_edge.MatchValue:
    """Return the condition that a value is equal to another."""
    from qdrant_edge import MatchValue

    return MatchValue(_EngineBool(value) if isinstance(value, bool) else value)


def _edge_conditions(filter: models.Filter, where: str, indexes: _Indexes) -> qdrant_edge.Filter:
    """Convert qdrant-client's filter to Edge's; `check_conditions` must have passed it.

    Raises:
        ConfigError: It contains a condition that Edge lacks; names it.
    """
    from qdrant_edge import Filter, MinShould

    made: dict[str, Any] = {}
    for name, conditions in clauses(filter, where):
        made[name] = [_condition(condition, place, indexes) for place, condition in conditions]
    if filter.min_should is not None:
        made["min_should"] = MinShould(made["min_should"], filter.min_should.min_count)
    return Filter(**made)


def _condition(condition: Any, where: str, indexes: _Indexes) -> Any:
    kind = type(condition).__name__
    if kind == "Filter":
        return _edge_conditions(condition, where, indexes)
    if kind not in _CONDITIONS:
        raise unsupported(
            where, kind, "Qdrant Edge", "keep the collection on a Qdrant server or on faiss"
        )
    if getattr(condition, "range", None) is not None:
        check_range_index(condition, indexes().get(condition.key), where)
    try:
        return _CONDITIONS[kind](condition, where)
    except ConfigError:
        raise
    except Exception as error:  # the engine's binding raises various types
        raise ConfigError(
            f"{where} cannot be used by the embedded engine: {error}; mend it, or leave it out"
        ) from error


def _field(condition: Any, where: str) -> Any:
    from qdrant_edge import FieldCondition, Filter, IsEmptyCondition

    if condition.is_empty:
        # In a field condition Edge tests whether any of a path's values is empty; everywhere else,
        # and on other engines, whether all are.
        return IsEmptyCondition(condition.key)
    kind = next(kind for kind in KINDS if getattr(condition, kind) is not None)
    value = getattr(condition, kind)
    if kind == "geo_bounding_box":
        boxes = [FieldCondition(condition.key, geo_bounding_box=box) for box in _boxes(value)]
        return boxes[0] if len(boxes) == 1 else Filter(should=[*boxes])
    if kind == "geo_polygon":
        _require_bounded(value, f"{where}.geo_polygon on {condition.key!r}")
    return FieldCondition(
        condition.key, **{kind: _VALUES[kind](value) if kind in _VALUES else value}
    )


def _is_empty(condition: Any, _: str) -> Any:
    from qdrant_edge import IsEmptyCondition

    return IsEmptyCondition(condition.is_empty.key)


def _is_null(condition: Any, _: str) -> Any:
    from qdrant_edge import IsNullCondition

    return IsNullCondition(condition.is_null.key)


def _has_id(condition: Any, _: str) -> Any:
    from qdrant_edge import HasIdCondition

    return HasIdCondition({str(image_id) for image_id in condition.has_id})


def _has_vector(condition: Any, _: str) -> Any:
    from qdrant_edge import HasVectorCondition

    return HasVectorCondition(condition.has_vector)


def _nested(condition: Any, where: str) -> Any:
    from qdrant_edge import NestedCondition

    nested = condition.nested
    # Fields of objects in a list have no index.
    inner = _edge_conditions(nested.filter, f"{where}.nested.filter", dict)
    return NestedCondition(nested.key, inner)


def _match(match: Any) -> Any:
    import qdrant_edge

    kind = type(match).__name__
    if kind == "MatchValue":
        return _edge_value(match.value)
    (given,) = match.model_dump().values()
    return getattr(qdrant_edge, kind)(given)


def _range(given: Any) -> Any:
    from qdrant_edge import RangeDateTime, RangeFloat

    kind: Any = RangeFloat if type(given).__name__ == "Range" else RangeDateTime
    gte, gt, lte, lt = given.gte, given.gt, given.lte, given.lt
    if kind is RangeDateTime:
        gte, gt, lte, lt = (_moment(at) for at in (gte, gt, lte, lt))  # ordered as text too
    # With an index, Edge heeds one bound a side; the stricter one says both.
    if gte is not None and gt is not None:
        gte, gt = (gte, None) if gte > gt else (None, gt)
    if lte is not None and lt is not None:
        lte, lt = (lte, None) if lte < lt else (None, lt)
    return kind(gte, gt, lte, lt)


def _moment(at: Any) -> str | None:
    """Format a moment; without a time zone it is in UTC, as on a server."""
    if at is None:
        return None
    moment = at if isinstance(at, datetime) else datetime.combine(at, time())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment.astimezone(timezone.utc).isoformat()


def _count(given: Any) -> Any:
    from qdrant_edge import ValuesCount

    return ValuesCount(lt=given.lt, gt=given.gt, lte=given.lte, gte=given.gte)


def _boxes(given: Any) -> list[Any]:
    """Split a box into smaller ones: with an index, Edge misses points in very large ones."""
    from qdrant_edge import GeoBoundingBox, GeoPoint

    west, east = given.top_left.lon, given.bottom_right.lon
    south, north = given.bottom_right.lat, given.top_left.lat
    across = _parts(west, east if west <= east else east + 360, _BOX_WIDTH)
    upward = _parts(south, north, _BOX_HEIGHT)
    return [
        GeoBoundingBox(GeoPoint(_around(left), top), GeoPoint(_around(right), bottom))
        for left, right in across
        for bottom, top in upward
    ]


def _parts(start: float, end: float, most: float) -> list[tuple[float, float]]:
    """Split an interval into overlapping parts, as points on the edge of a box are outside."""
    count = max(1, math.ceil((end - start) / most))
    step = (end - start) / count
    return [
        (start + n * step, end if n == count - 1 else start + (n + 1) * step + _OVERLAP)
        for n in range(count)
    ]


def _around(lon: float) -> float:
    return lon if lon <= 180 else lon - 360


def _circle(given: Any) -> Any:
    from qdrant_edge import GeoRadius

    return GeoRadius(_point(given.center), given.radius)


def _polygon(given: Any) -> Any:
    from qdrant_edge import GeoPolygon

    inner = [[_point(point) for point in ring.points] for ring in given.interiors or []]
    return GeoPolygon([_point(point) for point in given.exterior.points], inner or None)


def _require_bounded(polygon: Any, where: str) -> None:
    """Refuse a polygon around the world: with an index, Edge misses points in it."""
    lons, lats = ([getattr(p, of) for p in polygon.exterior.points] for of in ("lon", "lat"))
    if max(lons) - min(lons) > _POLYGON_WIDTH or max(lats) - min(lats) > _POLYGON_HEIGHT:
        raise ConfigError(
            f"{where} reaches around the world, or from pole to pole, which an embedded collection "
            "cannot be relied on to search; give a box, or two smaller polygons under should"
        )


def _point(given: Any) -> Any:
    from qdrant_edge import GeoPoint

    return GeoPoint(given.lon, given.lat)


_VALUES: dict[str, Callable[[Any], Any]] = {
    "match": _match,
    "range": _range,
    "geo_radius": _circle,
    "geo_polygon": _polygon,
    "values_count": _count,
}
_CONDITIONS: dict[str, Callable[[Any, str], Any]] = {
    "FieldCondition": _field,
    "HasIdCondition": _has_id,
    "HasVectorCondition": _has_vector,
    "IsEmptyCondition": _is_empty,
    "IsNullCondition": _is_null,
    "NestedCondition": _nested,
}
