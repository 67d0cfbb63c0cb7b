"""Evaluation of a filter on JSON payloads, for engines without filters of their own.

Follows Qdrant's semantics: a path selects any number of values, a list at its end counts as its
items, and a condition on a field holds if any of the values fulfils it.
"""

from __future__ import annotations

import math
import re
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timezone
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

from edje_qdrant.index.filters.validate import KINDS, clauses

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = ["Matcher", "compile_filter", "is_moment", "is_place", "required_texts"]

#: Tells from a payload and its point's id whether the filter matches.
Matcher: TypeAlias = Callable[[Any, str], bool]

_ValueTest: TypeAlias = Callable[[Any], bool]

_STEP = re.compile(r'"([^"]+)"|([A-Za-z0-9_-]+)|\[(\d*)\]')
_WORD = re.compile(r"[^\W_]+")
# A moment as Qdrant reads it: a date, optionally with hours and minutes, seconds and a zone.
_MOMENT = re.compile(
    r"\s*(\d{4}-\d\d?-\d\d?)(?:[Tt ](\d\d?:\d\d?)"
    r"(?:(:\d\d?)(\.\d+)?( UTC| ?(?:[Zz]|[+-]\d\d(?::?\d\d)?))?)?)?"
)
_EARTH_RADIUS = 6_371_008.8  # meters

# Texts to look for in a payload's JSON, at most.
_MAX_TEXTS = 16


def compile_filter(filter: models.Filter) -> Matcher:
    """Return a function that evaluates the filter; `check_conditions` must have passed it."""
    made: dict[str, list[Matcher]] = {"must": [], "should": [], "must_not": [], "min_should": []}
    for name, conditions in clauses(filter, ""):
        made[name] = [_CONDITIONS[type(each).__name__](each) for _, each in conditions]
    must, should, must_not, several = made.values()
    least = filter.min_should.min_count if filter.min_should else 0

    def matches(payload: Any, point_id: str) -> bool:
        return (
            all(test(payload, point_id) for test in must)
            and not any(test(payload, point_id) for test in must_not)
            and (not should or any(test(payload, point_id) for test in should))
            and sum(test(payload, point_id) for test in several) >= least
        )

    return matches


def required_texts(filter: models.Filter) -> list[list[str]]:
    """Return lists of texts, of each of which a matching payload contains at least one."""
    must = filter.must if isinstance(filter.must, list) else [filter.must]
    required = []
    for condition in must:
        match: Any = getattr(condition, "match", None)
        kind = type(match).__name__
        texts = [match.value] if kind == "MatchValue" else match.any if kind == "MatchAny" else []
        if 0 < len(texts) <= _MAX_TEXTS and all(isinstance(text, str) for text in texts):
            required.append([*texts])
    return required


def is_moment(text: str) -> bool:
    """Return whether a text is a date or a time by which ranges of dates find it."""
    return _moment(text) is not None


def is_place(value: Any) -> bool:
    """Return whether a value is a place on the globe: an object with `lon` and `lat`."""
    return _place(value) is not None


def _selector(path: str) -> Callable[[Any], list[Any]]:
    """Return a function that selects a path's values; lists at its end stay lists."""
    steps = [
        quoted or plain or (int(place) if place else None)
        for quoted, plain, place in _STEP.findall(path)
    ]

    def select(payload: Any) -> list[Any]:
        values = [payload]
        for step in steps:
            if isinstance(step, str):
                values = [v[step] for v in values if isinstance(v, dict) and step in v]
            elif step is None:
                values = [item for v in values if isinstance(v, list) for item in v]
            else:
                values = [v[step] for v in values if isinstance(v, list) and step < len(v)]
        return values

    return select


def _field(condition: Any) -> Matcher:
    select = _selector(condition.key)
    kind = next(kind for kind in KINDS if getattr(condition, kind) is not None)
    asked = getattr(condition, kind)
    if kind == "is_empty":
        return lambda payload, _: all(map(_empty, select(payload))) == asked
    if kind == "is_null":
        # Of several values, one that is as asked is enough; where there is none, it is not null.
        return lambda payload, _: any(_null(v) == asked for v in select(payload) or [0])
    if kind == "values_count":
        within = _bounds(asked)
        return lambda payload, _: any(within(_count(v)) for v in select(payload) or [None])
    test = _VALUE_TESTS[kind](asked)

    def matches(payload: Any, _: str) -> bool:
        for value in select(payload):
            if any(map(test, value)) if isinstance(value, list) else test(value):
                return True
        return False

    return matches


def _is_empty(condition: Any) -> Matcher:
    select = _selector(condition.is_empty.key)
    return lambda payload, _: all(map(_empty, select(payload)))


def _is_null(condition: Any) -> Matcher:
    select = _selector(condition.is_null.key)
    return lambda payload, _: any(map(_null, select(payload)))


def _has_id(condition: Any) -> Matcher:
    ids = {str(uuid.UUID(str(each))) for each in condition.has_id}
    return lambda _, point_id: point_id in ids


def _has_vector(condition: Any) -> Matcher:
    return lambda _, __: condition.has_vector == ""  # the name of a point's only vector


def _nested(condition: Any) -> Matcher:
    select = _selector(condition.nested.key.removesuffix("[]"))
    inner = compile_filter(condition.nested.filter)

    def matches(payload: Any, point_id: str) -> bool:
        return any(
            inner(element, point_id)
            for value in select(payload)
            if isinstance(value, list)
            for element in value
            if isinstance(element, dict)
        )

    return matches


def _slice(condition: Any) -> Matcher:
    total, index = condition.slice.total, condition.slice.index
    return lambda _, point_id: _siphash(uuid.UUID(point_id).bytes) % total == index


def _empty(value: Any) -> bool:
    return value is None or value == []


def _null(value: Any) -> bool:
    return value is None or (isinstance(value, list) and None in value)


def _count(value: Any) -> int:
    return 0 if value is None else len(value) if isinstance(value, list) else 1


def _match(match: Any) -> _ValueTest:
    (asked,) = match.model_dump().values()
    kind = type(match).__name__
    if kind in ("MatchValue", "MatchAny", "MatchExcept"):
        given = asked if isinstance(asked, list) else [asked]
        # 1 is neither True nor 1.0 here.
        wanted = {(next(t for t in (bool, int, str) if isinstance(v, t)), v) for v in given}

        def equal(value: Any) -> bool:
            return isinstance(value, str | int) and (type(value), value) in wanted

        if kind == "MatchExcept":
            return lambda value: value is not None and not equal(value)
        return equal
    if kind == "MatchPrefix":
        return lambda value: isinstance(value, str) and value.startswith(asked)
    if kind == "MatchSubstring":
        return lambda value: isinstance(value, str) and asked in value
    words = _words(asked)
    if kind == "MatchText":
        return lambda value: bool(words) and {*words} <= {*_words(value)}
    if kind == "MatchTextAny":
        return lambda value: not {*words}.isdisjoint(_words(value))

    def phrase(value: Any) -> bool:
        found = _words(value)
        starts = range(len(found) - len(words) + 1)
        return bool(words) and any(found[n : n + len(words)] == words for n in starts)

    return phrase


def _words(text: Any) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)] if isinstance(text, str) else []


def _range(asked: Any) -> _ValueTest:
    if type(asked).__name__ == "Range":
        within = _bounds(asked)
        return lambda v: isinstance(v, int | float) and not isinstance(v, bool) and within(v)
    between = _bounds(asked, _in_utc)

    def matches(value: Any) -> bool:
        moment = _moment(value) if isinstance(value, str) else None
        return moment is not None and between(moment)

    return matches


def _bounds(asked: Any, convert: Callable[[Any], Any] = lambda bound: bound) -> _ValueTest:
    lt, lte, gt, gte = (
        None if bound is None else convert(bound)
        for bound in (asked.lt, asked.lte, asked.gt, asked.gte)
    )

    def within(value: Any) -> bool:
        return (
            (lt is None or value < lt)
            and (lte is None or value <= lte)
            and (gt is None or value > gt)
            and (gte is None or value >= gte)
        )

    return within


def _in_utc(at: date) -> datetime:
    """Return a moment; without a time zone it is in UTC."""
    moment = at if isinstance(at, datetime) else datetime.combine(at, time())
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _moment(text: str) -> datetime | None:
    """Parse a moment in one of Qdrant's formats."""
    found = _MOMENT.fullmatch(text)
    if found is None:
        return None
    day, minutes, seconds, fraction, zone = found.groups(default="")
    zone = zone.strip().replace(":", "").ljust(5, "0") if zone[-1:].isdigit() else "+0000"
    clock = f"{minutes or '0:0'}{seconds or ':0'}{(fraction or '.0')[:7]}"
    try:
        return datetime.strptime(f"{day}T{clock}{zone}", "%Y-%m-%dT%H:%M:%S.%f%z")
    except ValueError:
        return None


def _place(value: Any) -> tuple[Any, Any] | None:
    """Return a geo point's `(lon, lat)`; None for any other value."""
    if not isinstance(value, dict):
        return None
    lon: Any = value.get("lon")
    lat: Any = value.get("lat")
    if not all(type(number) in (int, float) and abs(number) < 1e300 for number in (lon, lat)):
        return None
    return lon, lat


def _on_places(test: Callable[[float, float], bool]) -> _ValueTest:
    def matches(value: Any) -> bool:
        place = _place(value)
        return place is not None and test(*place)

    return matches


def _box(box: Any) -> _ValueTest:
    west: float = box.top_left.lon
    east: float = box.bottom_right.lon
    north: float = box.top_left.lat
    south: float = box.bottom_right.lat

    def inside(lon: float, lat: float) -> bool:
        # A box whose west lies east of its east crosses the 180th meridian.
        across = west < lon < east if west <= east else lon > west or lon < east
        return across and south < lat < north

    return _on_places(inside)


def _circle(circle: Any) -> _ValueTest:
    radius: float = circle.radius
    lon0, lat0 = math.radians(circle.center.lon), math.radians(circle.center.lat)

    def inside(lon: float, lat: float) -> bool:
        x, y = math.radians(lon), math.radians(lat)
        haversine = (
            math.sin((lat0 - y) / 2) ** 2
            + math.cos(y) * math.cos(lat0) * math.sin((lon0 - x) / 2) ** 2
        )
        return 2 * _EARTH_RADIUS * math.asin(math.sqrt(min(1.0, haversine))) < radius

    return _on_places(inside)


def _polygon(polygon: Any) -> _ValueTest:
    outer = [(p.lon, p.lat) for p in polygon.exterior.points]
    holes = [[(p.lon, p.lat) for p in ring.points] for ring in polygon.interiors or []]

    def inside(lon: float, lat: float) -> bool:
        return _in_ring(lon, lat, outer) is True and not any(
            _in_ring(lon, lat, hole) is not False for hole in holes
        )

    return _on_places(inside)


def _in_ring(lon: float, lat: float, ring: Sequence[tuple[float, float]]) -> bool | None:
    """Return whether a point is in a closed ring; None on its edge."""
    inside = False
    for (x0, y0), (x1, y1) in pairwise(ring):
        cross = (x1 - x0) * (lat - y0) - (y1 - y0) * (lon - x0)
        if cross == 0 and min(x0, x1) <= lon <= max(x0, x1) and min(y0, y1) <= lat <= max(y0, y1):
            return None
        if (y0 > lat) != (y1 > lat) and (cross > 0) == (y1 > y0):
            inside = not inside
    return inside


def _siphash(data: bytes) -> int:
    """Return the SipHash-2-4 of 16 bytes with key 0, by which Qdrant assigns ids to slices."""
    v = [0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573]

    def add(a: int, b: int, turn: int) -> None:
        v[a] = (v[a] + v[b]) & _64_BITS
        v[b] = v[a] ^ _rotated(v[b], turn)

    def mix(rounds: int) -> None:
        for _ in range(rounds):
            add(0, 1, 13)
            v[0] = _rotated(v[0], 32)
            add(2, 3, 16)
            add(0, 3, 21)
            add(2, 1, 17)
            v[2] = _rotated(v[2], 32)

    for block in (*struct.unpack("<2Q", data), len(data) << 56):
        v[3] ^= block
        mix(2)
        v[0] ^= block
    v[2] ^= 0xFF
    mix(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


_64_BITS = (1 << 64) - 1


def _rotated(word: int, by: int) -> int:
    return (word << by | word >> (64 - by)) & _64_BITS


_VALUE_TESTS: Mapping[str, Callable[[Any], _ValueTest]] = {
    "match": _match,
    "range": _range,
    "geo_bounding_box": _box,
    "geo_radius": _circle,
    "geo_polygon": _polygon,
}
_CONDITIONS: Mapping[str, Callable[[Any], Matcher]] = {
    "FieldCondition": _field,
    "Filter": compile_filter,
    "HasIdCondition": _has_id,
    "HasVectorCondition": _has_vector,
    "IsEmptyCondition": _is_empty,
    "IsNullCondition": _is_null,
    "NestedCondition": _nested,
    "SliceCondition": _slice,
}
