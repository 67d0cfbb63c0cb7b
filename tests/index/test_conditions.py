"""The client's own filters, which must choose the same points on every engine."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import date, datetime, timezone
from typing import Any

import filter_kinds
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from index_engines import Engine, edge_engine, image_id, qdrant_engine
from qdrant_client import QdrantClient, models

from edje_qdrant.errors import ConfigError
from edje_qdrant.index import Filter, VectorIndex
from edje_qdrant.index.filters.validate import check_conditions
from edje_qdrant.index.payload_indexes import PayloadKind

PAYLOADS = filter_kinds.make_payloads()
POINTS = filter_kinds.make_filter_points(PAYLOADS)
NUMBERS = {image_id(n): n for n in range(filter_kinds.COUNT)}
Both = tuple[VectorIndex, VectorIndex]
INDEXED: dict[str, PayloadKind] = {
    "album": "keyword",
    'camera."lens mm"': "integer",
    "camera.maker": "keyword",
    "ok": "bool",
    "sharp": "float",
    "taken": "datetime",
    "where": "geo",
    "words": "text",
    "year": "integer",
}

Field = models.FieldCondition
few = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    client = QdrantClient(":memory:")
    engines = edge_engine(tmp_path_factory.mktemp("edge")), qdrant_engine(client)
    edge, memory = (engine.create() for engine in engines)
    for index in (edge, memory):
        index.upsert(POINTS)
    yield edge, memory
    for engine in engines:
        engine.close()
    client.close()


def found(index: VectorIndex, filter: Filter | None) -> list[int]:
    pages = index.scroll(filter=filter, payload=False, batch_size=1000)
    return sorted(NUMBERS[point.id] for page in pages for point in page)


@pytest.mark.parametrize("kind", filter_kinds.kinds)
def test_a_condition_finds_the_same_on_both(both: Both, kind: str) -> None:
    edge, memory = both
    sizes = set()

    @few
    @given(filter_kinds.kinds[kind])
    def check(condition: Any) -> None:
        chosen = models.Filter(must=[condition])
        numbers = found(edge, chosen)
        assert numbers == found(memory, chosen)
        rest = found(edge, models.Filter(must_not=[condition]))
        assert sorted([*numbers, *rest]) == [*range(filter_kinds.COUNT)]
        sizes.add(len(numbers))

    check()
    assert len(sizes) > 1  # a kind that always lets all or nothing through would show nothing


@settings(few, max_examples=settings.default.max_examples)
@given(chosen=filter_kinds.filters)
def test_filters_of_filters_find_the_same_on_both(both: Both, chosen: models.Filter) -> None:
    edge, memory = both
    before = chosen.model_copy(deep=True)
    numbers = found(edge, chosen)
    assert numbers == found(memory, chosen)
    assert edge.count(chosen) == memory.count(chosen) == len(numbers)
    assert chosen == before


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Two alike, one with indexes, whose fields hold what their index is for."""
    engine = edge_engine(tmp_path_factory.mktemp("indexed"))
    plain, indexed = engine.create("plain"), engine.create("indexed")
    points = filter_kinds.make_filter_points(filter_kinds.make_payloads(seed=5, clean=True))
    for index in (plain, indexed):
        index.upsert(points)
    for field, kind in INDEXED.items():
        indexed.create_payload_index(field, kind)
    yield plain, indexed
    engine.close()


@pytest.mark.parametrize("field", ["sharp", "taken"])
@pytest.mark.parametrize("names", [("lte", "lt"), ("lt", "lte"), ("gte", "gt"), ("gt", "gte")])
def test_the_stricter_of_two_bounds_holds_with_an_index(
    indexed: Both, field: str, names: tuple[str, str]
) -> None:
    kind: Any = models.Range if field == "sharp" else models.DatetimeRange
    values: list[Any] = [-1.0, 1.0] if field == "sharp" else [date(2020, 2, 1), date(2023, 7, 1)]
    one, other = (
        models.Filter(must=[models.FieldCondition(key=field, range=kind(**{name: value}))])
        for name, value in zip(names, values, strict=True)
    )
    asked = kind(**dict(zip(names, values, strict=True)))
    both = models.Filter(must=[models.FieldCondition(key=field, range=asked)])
    expected = set(found(indexed[0], one)) & set(found(indexed[0], other))
    assert set(found(indexed[0], both)) == set(found(indexed[1], both)) == expected
    assert expected


@pytest.mark.parametrize("kind", filter_kinds.kinds)
def test_an_index_of_the_field_changes_nothing(indexed: Both, kind: str) -> None:
    assert indexed[1].payload_indexes() == INDEXED

    @settings(few, max_examples=25)
    @given(filter_kinds.kinds[kind])
    def check(condition: Any) -> None:
        if kind == "datetime range":
            assume(INDEXED.get(condition.key) in ("datetime", None))
        if kind == "range":
            assume(INDEXED.get(condition.key) in ("integer", "float", None))
        chosen = models.Filter(must=[condition])
        assert found(indexed[0], chosen) == found(indexed[1], chosen)

    check()


def values(payload: dict[str, Any], key: str) -> list[Any]:
    """Return what is there under a plain top-level key."""
    value = payload.get(key)
    return value if isinstance(value, list) else [value]


def same(value: Any, wanted: Any) -> bool:
    return type(value) is type(wanted) and value == wanted


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def moment(value: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(value.replace("Z", "+00:00"))
    except (ValueError, AttributeError):
        return None
    return at if at.tzinfo else at.replace(tzinfo=timezone.utc)


SPRING = datetime(2022, 3, 1, 8, tzinfo=timezone.utc)

PLAIN: list[tuple[Any, Callable[[dict[str, Any]], bool]]] = [
    (
        Field(key="album", match=models.MatchValue(value="2024")),
        lambda p: "2024" in values(p, "album"),
    ),
    (
        Field(key="year", match=models.MatchValue(value=2024)),
        lambda p: any(same(v, 2024) for v in values(p, "year")),
    ),
    (
        Field(key="ok", match=models.MatchValue(value=True)),
        lambda p: any(v is True for v in values(p, "ok")),
    ),
    (
        Field(key="ok", match=models.MatchValue(value=1)),
        lambda p: any(same(v, 1) for v in values(p, "ok")),
    ),
    (
        Field(key="year", match=models.MatchAny(any=[2020, 2023])),
        lambda p: any(same(v, w) for v in values(p, "year") for w in (2020, 2023)),
    ),
    (
        Field(key="album", match=models.MatchExcept(**{"except": ["2024", ""]})),
        lambda p: any(v is not None and v not in ("2024", "") for v in values(p, "album")),
    ),
    (
        Field(key="words", match=models.MatchText(text="KITE red")),
        lambda p: any(
            {"kite", "red"} <= {*v.lower().split()}
            for v in values(p, "words")
            if isinstance(v, str)
        ),
    ),
    (
        Field(key="words", match=models.MatchPhrase(phrase="red kite")),
        lambda p: any(
            " red kite " in f" {v.lower()} " for v in values(p, "words") if isinstance(v, str)
        ),
    ),
    (
        Field(key="sharp", range=models.Range(gt=-0.5, lte=0.5)),
        lambda p: any(number(v) and -0.5 < v <= 0.5 for v in values(p, "sharp")),
    ),
    (
        Field(key="taken", range=models.DatetimeRange(gte=SPRING, lt=date(2024, 5, 5))),
        lambda p: any(
            SPRING <= at < datetime(2024, 5, 5, tzinfo=timezone.utc)
            for v in values(p, "taken")
            if (at := moment(v))
        ),
    ),
    (
        Field(
            key="where",
            geo_bounding_box=models.GeoBoundingBox(
                top_left=models.GeoPoint(lon=170, lat=60),
                bottom_right=models.GeoPoint(lon=20, lat=-30),
            ),
        ),
        lambda p: any(
            (v["lon"] > 170 or v["lon"] < 20) and -30 < v["lat"] < 60
            for v in values(p, "where")
            if isinstance(v, dict) and len(v) == 2
        ),
    ),
    (
        Field(key="album", values_count=models.ValuesCount(gte=2)),
        lambda p: isinstance(p.get("album"), list) and len(p["album"]) >= 2,
    ),
    (
        models.IsEmptyCondition(is_empty=models.PayloadField(key="album")),
        lambda p: p.get("album") in (None, []),
    ),
    (
        models.IsNullCondition(is_null=models.PayloadField(key="album")),
        lambda p: "album" in p and p["album"] is None,
    ),
    (
        models.NestedCondition(
            nested=models.Nested(
                key="people",
                filter=models.Filter(
                    must=[
                        Field(key="name", match=models.MatchValue(value="red")),
                        Field(key="age", range=models.Range(lt=30)),
                    ]
                ),
            )
        ),
        lambda p: any(q["name"] == "red" and q["age"] < 30 for q in p.get("people", [])),
    ),
]


@pytest.mark.parametrize("number", range(len(PLAIN)))
def test_what_plain_conditions_mean(both: Both, number: int) -> None:
    condition, expected = PLAIN[number]
    chosen = [n for n, payload in enumerate(PAYLOADS) if expected(payload)]
    assert 0 < len(chosen) < filter_kinds.COUNT
    for index in both:
        assert found(index, models.Filter(must=[condition])) == chosen


@few
@given(
    clauses=st.lists(st.lists(st.integers(0, len(PLAIN) - 1), max_size=3), min_size=4, max_size=4),
    least=st.integers(1, 3),
)
def test_what_clauses_mean(both: Both, clauses: list[list[int]], least: int) -> None:
    must, should, must_not, several = ([PLAIN[n][0] for n in clause] for clause in clauses)
    chosen = models.Filter(must=must, should=should, must_not=must_not)
    if several:
        chosen.min_should = models.MinShould(conditions=several, min_count=least)

    def holds(payload: dict[str, Any]) -> bool:
        musts, shoulds, nots, some = ([PLAIN[n][1](payload) for n in c] for c in clauses)
        return (
            all(musts)
            and (not shoulds or any(shoulds))
            and not any(nots)
            and (not some or sum(some) >= least)
        )

    expected = [n for n, payload in enumerate(PAYLOADS) if holds(payload)]
    for index in both:
        assert found(index, chosen) == expected


def test_every_engine_takes_the_clients_filter(engine: Engine) -> None:
    index = engine.create()
    index.upsert(POINTS)
    index.create_payload_index("words", "text")  # without it, a server does not find words
    ids = [image_id(3), uuid.UUID(image_id(5)), image_id(7)]
    for condition, expected in PLAIN:
        chosen = models.Filter(must=condition, must_not=models.HasIdCondition(has_id=ids))
        numbers = [n for n, p in enumerate(PAYLOADS) if expected(p) and n not in (3, 5, 7)]
        assert found(index, chosen) == numbers
        assert index.count(chosen) == len(numbers)
    index.delete_matching(models.Filter(must=PLAIN[0][0]))
    left = [n for n, p in enumerate(PAYLOADS) if not PLAIN[0][1](p)]
    assert found(index, models.Filter()) == found(index, None) == left


@pytest.mark.parametrize(
    "chosen",
    [
        models.Filter(),
        models.Filter(must=[]),
        models.Filter(must=[models.Filter(should=[])], must_not=[]),
    ],
)
def test_deleting_by_a_filter_without_condition_is_refused(both: Both, chosen: Any) -> None:
    for index in both:
        with pytest.raises(ConfigError, match="would delete everything"):
            index.delete_matching(chosen)
        assert index.count(chosen) == filter_kinds.COUNT


def test_slices_are_refused_where_there_are_none(both: Both) -> None:
    edge, memory = both
    half = models.SliceCondition(slice=models.Slice(total=2, index=0))
    chosen = models.Filter(must=[models.Filter(should=[half])])
    assert 0 < memory.count(chosen) < filter_kinds.COUNT
    with pytest.raises(
        ConfigError,
        match=r"filter\.must\[0\]\.should\[0\] is a SliceCondition, which Qdrant Edge cannot "
        "filter by; leave it out, or keep",
    ):
        edge.count(chosen)


def geo(lon: float, lat: float) -> models.GeoPoint:
    return models.GeoPoint(lon=lon, lat=lat)


def ring(*corners: tuple[float, float]) -> models.GeoLineString:
    return models.GeoLineString(points=[geo(*corner) for corner in corners])


LARGE_BOXES = [
    (-180, 90, 180, -90),
    (-30, 90, 40, -90),
    (-180, 60, 180, -90),
    (37.5, 66, 4.5, -7),
    (170, 90, -170, -90),
    (0, 0, 0, 0),
    (-180, 50, 180, 20),
]


@pytest.mark.parametrize(("west", "north", "east", "south"), LARGE_BOXES)
def test_large_boxes(
    both: Both, indexed: Both, west: float, north: float, east: float, south: float
) -> None:
    box = models.GeoBoundingBox(top_left=geo(west, north), bottom_right=geo(east, south))
    chosen = models.Filter(must=[Field(key="where", geo_bounding_box=box)])
    assert found(both[0], chosen) == found(both[1], chosen)
    assert found(indexed[0], chosen) == found(indexed[1], chosen)
    assert (indexed[1].count(chosen) > 0) == (west != east)


@pytest.mark.parametrize(("lon", "lat"), [(180, 10), (10, 90)])
def test_polygons_around_the_world_are_refused(both: Both, lon: float, lat: float) -> None:
    edge, memory = both
    world = ring((-lon, -lat), (lon, -lat), (lon, lat), (-lon, lat), (-lon, -lat))
    asked = Field(key="where", geo_polygon=models.GeoPolygon(exterior=world))
    assert memory.count(models.Filter(should=asked)) > 0
    with pytest.raises(ConfigError, match=r"filter\.should\[0\]\.geo_polygon on 'where' reaches"):
        edge.count(models.Filter(should=asked))


def equal(key: str) -> models.FieldCondition:
    return Field(key=key, match=models.MatchValue(value=1))


def in_people(**clauses: Any) -> models.NestedCondition:
    inner = models.Filter(**clauses)
    return models.NestedCondition(nested=models.Nested(key="people", filter=inner))


nan, inf = float("nan"), float("inf")

REFUSED: list[tuple[Any, str]] = [
    (equal("_edje"), r"filter\.must\[0\]: key '_edje' is reserved"),
    (equal("_edje.record"), "reserved"),
    (equal('"_edje".record'), "reserved"),
    (equal("_edje[0]"), "reserved"),
    (models.IsEmptyCondition(is_empty=models.PayloadField(key="_edje.x")), "reserved"),
    (models.IsNullCondition(is_null=models.PayloadField(key="_edje")), "reserved"),
    (
        models.NestedCondition(
            nested=models.Nested(key="_edje", filter=models.Filter(must=[equal("a")]))
        ),
        r"filter\.must\[0\]\.nested: key '_edje' is reserved",
    ),
    (models.Filter(min_should=models.MinShould(conditions=[equal("_edje")], min_count=1)), "_edje"),
    (equal("a b"), "'a b' is no path.*double quotes"),
    (equal(""), "no path"),
    (equal("a..b"), "no path"),
    (equal("a[x]"), "no path"),
    (equal('"\udcff"'), "no text"),
    (Field(key="a", match=models.MatchAny(any=["x", "\udcff"])), "match on 'a' asks for .*no text"),
    (Field(key="a"), "asks for nothing; give one of match, range"),
    (Field(key="a", is_null=True, is_empty=False), "asks for is_empty and is_null"),
    (Field(key="a", match=models.MatchValue(value=2**63)), "64 bits"),
    (Field(key="a", match=models.MatchAny(any=[1, -(2**63) - 1])), "64 bits"),
    (Field(key="a", range=models.Range()), "has no bound; give one of gte"),
    (Field(key="a", range=models.DatetimeRange()), "has no bound"),
    (Field(key="a", range=models.Range(gt=nan)), "gt is nan"),
    (Field(key="a", range=models.Range(gt=1, lte=inf)), "lte is inf"),
    (Field(key="a", values_count=models.ValuesCount()), "has no bound"),
    (Field(key="a", values_count=models.ValuesCount(gt=-1)), "gt is -1"),
    (Field(key="a", geo_radius=models.GeoRadius(center=geo(0, 91), radius=1)), "center is lon 0.0"),
    (Field(key="a", geo_radius=models.GeoRadius(center=geo(0, 0), radius=-1)), "radius is -1"),
    (Field(key="a", geo_radius=models.GeoRadius(center=geo(0, 0), radius=inf)), "radius is inf"),
    (
        Field(
            key="a",
            geo_bounding_box=models.GeoBoundingBox(top_left=geo(0, 0), bottom_right=geo(nan, 0)),
        ),
        "bottom_right is lon nan",
    ),
    (
        Field(key="a", geo_polygon=models.GeoPolygon(exterior=ring((0, 0), (1, 0), (0, 1)))),
        "exterior is no closed ring",
    ),
    (
        Field(
            key="a",
            geo_polygon=models.GeoPolygon(
                exterior=ring((0, 0), (1, 0), (0, 1), (0, 0)),
                interiors=[ring((0, 0), (1, 0), (0, 1), (1, 1))],
            ),
        ),
        r"interiors\[0\] is no closed ring",
    ),
    (models.HasIdCondition(has_id=[image_id(1), "seven"]), "has_id holds 'seven'.*UUID"),
    (models.HasIdCondition(has_id=[7]), "has_id holds 7"),
    (
        models.Filter(min_should=models.MinShould(conditions=[equal("a")], min_count=0)),
        r"filter\.must\[0\]\.min_should has the min_count 0",
    ),
    (
        models.Filter(min_should=models.MinShould(conditions=[], min_count=1)),
        r"min_should is an empty list",
    ),
    (in_people(must=[]), r"filter\.must\[0\]\.nested\.filter\.must is an empty list"),
    (
        in_people(should=[models.Filter(must_not=[models.HasIdCondition(has_id=[])])]),
        r"filter\.should\[0\]\.must_not\[0\] is a HasIdCondition, which speaks of a point",
    ),
    (in_people(must=[models.HasVectorCondition(has_vector="")]), "beside the nested condition"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_refused(both: Both, number: int) -> None:
    condition, words = REFUSED[number]
    chosen = models.Filter(must=[condition])
    for index in both:
        for use in (index.count, index.delete_matching, lambda c, i=index: i.scroll(filter=c)):
            with pytest.raises(ConfigError, match=words):
                use(chosen)
        assert index.count() == filter_kinds.COUNT


def test_what_a_later_client_may_bring_is_refused_by_name() -> None:
    class MatchMood(models.MatchValue):
        pass

    class MoodCondition(models.Filter):
        pass

    for condition, words in (
        (MoodCondition(), r"filter\.should\[0\] is a MoodCondition"),
        (Field(key="a", match=MatchMood(value=1)), r"filter\.should\[0\]\.match on 'a' is a Match"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_conditions(models.Filter(should=condition))


def test_filters_in_filters_go_so_deep_and_no_deeper(both: Both) -> None:
    chosen = models.Filter(must=[PLAIN[0][0]])
    for _ in range(32):
        chosen = models.Filter(must=[chosen])
    for index in both:
        assert found(index, chosen) == found(index, models.Filter(must=[PLAIN[0][0]]))
        with pytest.raises(ConfigError, match="more than 32 deep"):
            index.count(models.Filter(should=[chosen]))


def test_the_reserved_name_is_free_within_objects_of_a_list(both: Both) -> None:
    for index in both:
        assert index.count(models.Filter(must=in_people(must=[equal("_edje")]))) == 0
