"""Points with payloads of every kind, and filters of the client's made by chance."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
from hypothesis import strategies as st
from index_engines import image_id, unit_vectors
from qdrant_client import models

from edje_qdrant.types import Point

COUNT = 120
ALBUMS = ["2023", "2024", "Ö & Söhne", ""]
WORDS = ["red", "kite", "Frozen", "lake", "over", "a", "Söhne"]
ZONE = timezone(timedelta(hours=2))


def make_payloads(count: int = COUNT, seed: int = 3, clean: bool = False) -> list[dict[str, Any]]:
    """Make payloads whose fields are now and then missing or null, or, if not clean, anything."""
    rng = np.random.default_rng(seed)

    def one_of(*options: Any, odd: Sequence[Any] = ()) -> Any:
        """Choose one; the odd ones are not of the type that the field should hold."""
        chosen = options if clean else (*options, *odd)
        return chosen[rng.integers(len(chosen))]

    def place() -> dict[str, float]:
        return {"lon": float(rng.uniform(-180, 180)), "lat": float(rng.uniform(-90, 90))}

    payloads = []
    for n in range(count):
        payload: dict[str, Any] = {
            "album": one_of(*ALBUMS, [*ALBUMS[:2]], None, [], odd=[2024]),
            "year": one_of(*range(2019, 2026), [2020, 2023], None, odd=["2024", True, 2024.0]),
            "ok": one_of(True, False, None, [True], [True, None], odd=[1, 0, "True"]),
            "sharp": one_of(float(rng.normal()), float(rng.normal()), 1, [0.5, -3.5], odd=["0.5"]),
            "words": one_of(
                *[" ".join(rng.permutation(WORDS)[:k]) for k in (1, 3, 5)], ["red"], odd=[7]
            ),
            "taken": one_of(
                f"202{n % 5}-0{1 + n % 9}-11T10:00:00Z",
                f"202{n % 5}-0{1 + n % 9}-11 09:30:00+02:00",
                f"202{n % 5}-0{1 + n % 9}-11",
                odd=["never", 2021],
            ),
            "where": one_of(place(), place(), [place(), place()], odd=[{"lon": 1.0}, "home"]),
            "camera": {
                "maker": one_of(*WORDS[:3], None),
                "lens mm": one_of(35, 50, [35, 50]),
            },
            "people": [
                {
                    "name": one_of(*WORDS[:3]),
                    "age": int(rng.integers(60)),
                    "pets": [{"legs": 4}] * k,
                }
                for k in rng.integers(0, 3, rng.integers(0, 4))
            ],
        }
        for key in [*payload]:
            if rng.random() < 0.15:
                del payload[key]
        payloads.append(payload)
    return payloads


def make_filter_points(payloads: list[dict[str, Any]]) -> list[Point]:
    vectors = unit_vectors(len(payloads))
    return [Point(image_id(n), vectors[n], payload) for n, payload in enumerate(payloads)]


_years = st.integers(2018, 2026)
_lons, _lats = st.floats(-180, 180), st.floats(-90, 90)
_keys = st.sampled_from(
    [
        "album",
        "year",
        "ok",
        "sharp",
        "words",
        "taken",
        "where",
        "camera",
        "camera.maker",
        'camera."lens mm"',
        "people",
        "people[].name",
        "people[].age",
        "people[0].age",
        "people[].pets",
        "people[].pets[].legs",
        "year[]",
        "never",
        "never.there",
    ]
)
_points = st.builds(models.GeoPoint, lon=_lons, lat=_lats)
_moments = st.one_of(
    st.dates(datetime(2019, 1, 1).date(), datetime(2025, 1, 1).date()),
    st.datetimes(datetime(2019, 1, 1), datetime(2025, 1, 1)),
    st.datetimes(datetime(2019, 1, 1), datetime(2025, 1, 1), timezones=st.just(ZONE)),
)
_phrases = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
_texts = st.lists(st.sampled_from([*ALBUMS, *WORDS, "True", "2024"]), max_size=3)
_numbers = st.lists(st.one_of(_years, st.integers(0, 60)), max_size=3)

_equal = st.sampled_from([*ALBUMS, *WORDS, "True", "2024"]) | _years | st.booleans()
_matches: dict[str, st.SearchStrategy[Any]] = {
    "match value": st.builds(models.MatchValue, value=_equal),
    "match any": st.builds(models.MatchAny, any=_texts | _numbers),
    "match except": (_texts | _numbers).map(lambda given: models.MatchExcept(**{"except": given})),
    "match text": st.builds(models.MatchText, text=_phrases),
    "match text any": st.builds(models.MatchTextAny, text_any=_phrases),
    "match phrase": st.builds(models.MatchPhrase, phrase=_phrases),
    "match prefix": st.builds(models.MatchPrefix, prefix=st.sampled_from(["", "20", "re", "Ö"])),
    "match substring": st.builds(
        models.MatchSubstring, substring=st.sampled_from(["", "02", "öh", "K"])
    ),
}


def _bounds(values: st.SearchStrategy[Any], kind: Any) -> st.SearchStrategy[Any]:
    names = st.sampled_from(["gte", "gt", "lte", "lt"])
    return st.dictionaries(names, values, min_size=1, max_size=2).map(lambda given: kind(**given))


@st.composite
def _polygons(draw: st.DrawFn) -> models.GeoPolygon:
    def ring(lon: float, lat: float, size: float) -> models.GeoLineString:
        corners = [(lon, lat), (lon + size, lat), (lon + size / 2, lat + size / 2), (lon, lat)]
        return models.GeoLineString(points=[models.GeoPoint(lon=x, lat=y) for x, y in corners])

    lon, lat = draw(st.floats(-170, 0)), draw(st.floats(-80, 0))
    size = draw(st.floats(20, 160))
    holes = [ring(lon + size / 3, lat + size / 9, size / 4)] if draw(st.booleans()) else None
    return models.GeoPolygon(exterior=ring(lon, lat, size), interiors=holes)


_boxes = st.builds(
    lambda west, east, north, height: models.GeoBoundingBox(
        top_left=models.GeoPoint(lon=west, lat=north),
        bottom_right=models.GeoPoint(lon=east, lat=max(-90.0, north - height)),
    ),
    _lons,
    _lons,
    _lats,
    st.floats(0, 180),
)
_asked: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    **{kind: made.map(lambda match: {"match": match}) for kind, made in _matches.items()},
    "range": _bounds(st.floats(-5, 60) | _years.map(float), models.Range).map(
        lambda given: {"range": given}
    ),
    "datetime range": _bounds(_moments, models.DatetimeRange).map(lambda given: {"range": given}),
    "values count": _bounds(st.integers(0, 4), models.ValuesCount).map(
        lambda given: {"values_count": given}
    ),
    "geo box": _boxes.map(lambda given: {"geo_bounding_box": given}),
    "geo radius": st.builds(models.GeoRadius, center=_points, radius=st.floats(0, 1.5e7)).map(
        lambda given: {"geo_radius": given}
    ),
    "geo polygon": _polygons().map(lambda given: {"geo_polygon": given}),
    "field is empty": st.booleans().map(lambda flag: {"is_empty": flag}),
    "field is null": st.booleans().map(lambda flag: {"is_null": flag}),
}

#: Where a kind of condition finds something; anywhere else it finds nothing, if not by chance.
_HOMES = {
    "range": ["sharp", "year", "people[].age"],
    "datetime range": ["taken"],
    "geo box": ["where"],
    "geo radius": ["where"],
    "geo polygon": ["where"],
    "match text": ["words"],
    "match text any": ["words"],
    "match phrase": ["words"],
}


def _field(key: str, asked: dict[str, Any]) -> models.FieldCondition:
    """Make a condition that no engine refuses: memory mode does one about nulls in a list."""
    if asked == {"is_null": False} and "[]" in key:
        asked = {"is_null": True}
    return models.FieldCondition(key=key, **asked)


def _fields(kind: str) -> st.SearchStrategy[models.FieldCondition]:
    homes = st.sampled_from(_HOMES[kind]) if kind in _HOMES else _keys
    return st.builds(_field, homes | _keys, _asked[kind])


_element_fields = st.builds(
    _field,
    st.sampled_from(["name", "age", "pets", "pets[].legs", "never"]),
    st.one_of(*_asked.values()),
)


def _filters(
    conditions: st.SearchStrategy[Any], least: int = 0
) -> st.SearchStrategy[models.Filter]:
    several = st.lists(conditions, min_size=least, max_size=3)
    return st.builds(
        models.Filter,
        must=st.none() | several | conditions,
        should=st.none() | several | conditions,
        must_not=st.none() | several,
        min_should=st.none()
        | st.builds(
            models.MinShould,
            conditions=st.lists(conditions, min_size=1, max_size=4),
            min_count=st.integers(1, 3),
        ),
    )


_element_filters = _filters(_element_fields, least=1)
_nested = st.builds(
    lambda key, inner: models.NestedCondition(nested=models.Nested(key=key, filter=inner)),
    st.sampled_from(["people", "people[]", "camera", "never"]),
    _element_filters
    | st.builds(
        lambda inner: models.Filter(
            must=[models.NestedCondition(nested=models.Nested(key="pets", filter=inner))]
        ),
        _filters(
            st.builds(
                lambda legs: models.FieldCondition(key="legs", match=models.MatchValue(value=legs)),
                st.integers(3, 4),
            ),
            least=1,
        ),
    ),
)
#: Conditions of each kind there is.
kinds: dict[str, st.SearchStrategy[Any]] = {
    **{kind: _fields(kind) for kind in _asked},
    "nested": _nested,
    "is empty": _keys.map(
        lambda key: models.IsEmptyCondition(is_empty=models.PayloadField(key=key))
    ),
    "is null": _keys.map(lambda key: models.IsNullCondition(is_null=models.PayloadField(key=key))),
    "has id": st.lists(st.integers(0, COUNT + 5).map(image_id), max_size=20).map(
        lambda ids: models.HasIdCondition(has_id=ids)
    ),
    "has vector": st.sampled_from(["", "other"]).map(
        lambda name: models.HasVectorCondition(has_vector=name)
    ),
}
_leaves = st.sampled_from([*kinds]).flatmap(kinds.__getitem__)

#: Filters of all of these, and of filters of them.
filters = _filters(_leaves | _filters(_leaves))
