"""What a server is asked for, so that it finds what the other engines do."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from index_engines import edge_engine, faiss_engine, image_id, qdrant_engine, unit_vectors
from index_stand_in import StandIn
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

from edje_qdrant.errors import ConfigError, EngineUnavailableError
from edje_qdrant.index.qdrant.filter import ServerFacts, memory_filter, server_filter
from edje_qdrant.index.qdrant.versions import ServerVersion
from edje_qdrant.types import Point

Field = models.FieldCondition
SLICE = models.SliceCondition(slice=models.Slice(total=4, index=1))
PREFIX = Field(key="a", match=models.MatchPrefix(prefix="x"))
SUBSTRING = Field(key="a", match=models.MatchSubstring(substring="x"))
WORDS = [
    models.MatchText(text="red kite"),
    models.MatchTextAny(text_any="red kite"),
    models.MatchPhrase(phrase="red kite"),
]
NUMBERS = Field(key="a", range=models.Range(gte=1))
DATES = Field(key="a", range=models.DatetimeRange(gte=date(2024, 1, 1)))


def facts(version: str | None = "1.18.3", **kinds: Any) -> ServerFacts:
    """Return a server of that version, with payload indexes: field -> kind, or settings of text."""

    def index(path: str, again: bool) -> Any:
        kind = kinds.get(path)
        params = None
        if isinstance(kind, dict):
            params, kind = models.TextIndexParams(type=models.TextIndexType.TEXT, **kind), "text"
        if kind is None:
            return None
        return models.PayloadIndexInfo(data_type=kind, params=params, points=0)

    return ServerFacts(ServerVersion(lambda: version, "http://there"), index)


def asked(condition: Any, known: ServerFacts, clause: str = "must") -> Any:
    """Return what takes the condition's place."""
    made = server_filter(models.Filter(**{clause: [condition]}), known)
    (found,) = getattr(made, clause)
    return found


OURS = {"tokenizer": "word", "lowercase": True, "phrase_matching": True}


def test_a_null_is_looked_for_by_a_test_of_the_field() -> None:
    null = models.IsNullCondition(is_null=models.PayloadField(key="a.b"))
    assert asked(null, facts(), "must_not") == Field(key="a.b", is_null=True)
    inner = models.Nested(key="a", filter=models.Filter(should=[models.Filter(must=[null])]))
    nested = asked(models.NestedCondition(nested=inner), facts())
    assert nested.nested.filter.should[0].must == [Field(key="a.b", is_null=True)]


def test_what_is_empty_is_looked_for_by_a_condition_of_its_own() -> None:
    empty = models.IsEmptyCondition(is_empty=models.PayloadField(key="a[].x"))
    assert asked(Field(key="a[].x", is_empty=True), facts()) == empty
    filled = Field(key="a[].x", is_empty=False)
    assert asked(filled, facts()) == filled


@pytest.mark.parametrize("bounds", [{"lt": 1}, {"lte": 0}, {"lt": 3}, {"gte": 0}, {"lte": 2}])
def test_a_missing_field_counts_as_no_value(bounds: dict[str, int]) -> None:
    count = Field(key="a", values_count=models.ValuesCount(**bounds))
    empty = models.IsEmptyCondition(is_empty=models.PayloadField(key="a"))
    assert asked(count, facts()) == models.Filter(should=[count, empty])


def test_what_takes_a_conditions_place_travels_over_grpc() -> None:
    null = models.IsNullCondition(is_null=models.PayloadField(key="a"))
    count = Field(key="a", values_count=models.ValuesCount(lt=1))
    inner = models.Nested(key="b", filter=models.Filter(must_not=[null, count]))
    given = models.Filter(
        must=[null],
        should=[models.NestedCondition(nested=inner)],
        min_should=models.MinShould(conditions=[count, null], min_count=1),
    )
    made = server_filter(given, facts())
    back = GrpcToRest.convert_filter(RestToGrpc.convert_filter(made))
    assert made is not None
    assert filled(back.model_dump()) == filled(made.model_dump())


def filled(value: Any) -> Any:
    """Leave out fields that are None or empty: servers treat both alike."""
    if isinstance(value, dict):
        return {key: filled(each) for key, each in value.items() if each not in (None, [])}
    return [filled(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("bounds", [{"gte": 1}, {"gt": 0}, {"lt": 0}, {"gt": 0, "lt": 9}])
def test_other_counts_are_asked_for_as_they_are(bounds: dict[str, int]) -> None:
    count = Field(key="a", values_count=models.ValuesCount(**bounds))
    assert asked(count, facts()) == count


def test_plain_conditions_and_their_clauses_stay() -> None:
    plain = [Field(key="a", match=models.MatchValue(value=1)), NUMBERS, DATES]
    least = models.MinShould(conditions=plain, min_count=2)
    given = models.Filter(must=plain[0], should=plain, must_not=[], min_should=least)
    expected = models.Filter(must=plain[:1], should=plain, must_not=[], min_should=least)
    assert server_filter(given, facts(None)) == expected
    assert server_filter({"a": [1, "x"]}, facts(None)) is not None
    assert server_filter(None, facts(None)) is server_filter({}, facts(None)) is None


@pytest.mark.parametrize(
    ("condition", "kind", "needed"),
    [
        (SLICE, "SliceCondition", "1.19"),
        (PREFIX, "MatchPrefix", "1.19"),
        (SUBSTRING, "MatchSubstring", "1.20"),
    ],
)
def test_what_a_server_is_too_old_for_is_refused(condition: Any, kind: str, needed: str) -> None:
    for version in ("1.16.0", "1.18.3", "1.19.0-dev" if needed == "1.20" else "1.18.9"):
        words = rf"filter\.must\[0\].* is a {kind}, which Qdrant {version} does not know; "
        with pytest.raises(ConfigError, match=words + f".*use Qdrant {needed} or later"):
            asked(condition, facts(version))
    with pytest.raises(ConfigError, match=r"a server of unknown version, taken for 1\.16, does"):
        asked(condition, facts(None))
    for version in (f"{needed}.0", "1.20.1", "2.0.0"):
        assert asked(condition, facts(version)) == condition


@pytest.mark.parametrize("match", WORDS, ids=lambda match: type(match).__name__)
def test_words_need_a_text_index(match: Any) -> None:
    condition = Field(key="a", match=match)
    known = facts(a=OURS)
    assert asked(condition, known) == condition
    for none in (facts(), facts(a="keyword")):
        with pytest.raises(
            ConfigError, match=r"must\[0\].match on 'a' asks for words.*create_payload_index\('a',"
        ):
            asked(condition, none)
    others = [{"tokenizer": "prefix"}, {"lowercase": False}, {"stemmer": None, "min_token_len": 3}]
    for other in others:
        with pytest.raises(ConfigError, match=r"made with .*replace it: create_payload_index"):
            asked(condition, facts(a=OURS | other))
    inner = models.Filter(must=[condition])
    for hidden in (
        models.NestedCondition(nested=models.Nested(key="b", filter=inner)),
        Field(key="b[].a", match=match),
    ):
        with pytest.raises(ConfigError, match="none for objects in a list"):
            asked(hidden, known)


def test_a_phrase_needs_an_index_of_phrases() -> None:
    known = facts(a={**OURS, "phrase_matching": False})
    assert asked(Field(key="a", match=WORDS[0]), known)
    with pytest.raises(ConfigError, match="made with phrase_matching=False"):
        asked(Field(key="a", match=WORDS[2]), known)


@pytest.mark.parametrize(
    ("condition", "kinds"), [(NUMBERS, ["datetime"]), (DATES, ["integer", "float"])]
)
def test_a_range_by_an_index_of_the_other_kind_is_refused(condition: Any, kinds: list[str]) -> None:
    for kind in kinds:
        with pytest.raises(ConfigError, match=rf"must\[0\].range on 'a' asks.*of kind {kind}"):
            asked(condition, facts(a=kind))
    for kind in ("keyword", "text", "bool", *({"datetime", "integer", "float"} - {*kinds})):
        assert asked(condition, facts(a=kind)) == condition


def test_memory_mode_refuses_what_it_misreads() -> None:
    condition = Field(key="a[].x", is_null=False)
    nested = models.Nested(key="b", filter=models.Filter(should=[condition]))
    for chosen, place in (
        (models.Filter(must_not=condition), r"filter\.must_not\[0\]"),
        (
            models.Filter(must=[models.NestedCondition(nested=nested)]),
            r"filter\.must\[0\]\.nested\.filter\.should\[0\]",
        ),
    ):
        with pytest.raises(ConfigError, match=place + " asks on 'a.*memory mode mistakes"):
            memory_filter(chosen)
    fine = models.Filter(must=[Field(key="a[].x", is_null=True), Field(key="a", is_null=False)])
    assert memory_filter(fine) == fine


def test_an_open_collection_asks_the_server(stand_in: StandIn) -> None:
    with_index = models.Filter(must=[Field(key="a", match=WORDS[0])])
    engine = qdrant_engine(stand_in.url)
    index = engine.create()
    index.upsert([Point(image_id(0), unit_vectors(1)[0], {"a": "Red kite"})])
    with pytest.raises(ConfigError, match="asks for words"):
        index.count(with_index)
    # Another process creates the index.
    engine.open().create_payload_index("a", "text")
    assert index.count(with_index) == 1
    stand_in.seen.clear()
    assert index.count(with_index) == 1
    assert stand_in.seen == ["POST /collections/images/points/count"]


def test_asking_the_server_what_it_makes_of_a_filter_takes_no_longer_than_the_search(
    stand_in: StandIn,
) -> None:
    engine = qdrant_engine(stand_in.url)
    index = engine.create()
    chosen = models.Filter(must=[Field(key="a", match=WORDS[0])])
    stand_in.failures.extend([(503, {})] * 10)
    with pytest.raises(EngineUnavailableError, match="after 1 tries, with no time left"):
        index.nearest(unit_vectors(1), 1, filter=chosen, timeout=1e-6)
    engine.close()


def test_in_strict_mode_filters_need_indexes(stand_in: StandIn) -> None:
    engine = qdrant_engine(stand_in.url)
    made = engine.create()
    made.upsert([Point(image_id(0), unit_vectors(1)[0], {"a": 1, "b": 1, "c": [{"d": 1}]})])
    limits = {"unindexed_filtering_retrieve": False, "unindexed_filtering_update": False}
    strict = {"strict_mode_config": {"enabled": True, **limits}}
    stand_in.answer("PATCH", ["collections", "images"], strict)
    index = engine.open()
    index.create_payload_index("a", "integer")
    assert index.count({"a": 1}) == 1
    assert index.count(models.Filter(must=[models.HasIdCondition(has_id=[image_id(0)])])) == 1
    nothing = Field(key="b", match=models.MatchAny(any=[]))
    assert index.count(models.Filter(must=[nothing])) == 0  # needs no index
    stand_in.seen.clear()
    one = models.MatchValue(value=1)
    empty = models.IsEmptyCondition(is_empty=models.PayloadField(key="b"))
    nested = models.Nested(key="c", filter=models.Filter(must=[Field(key="d", match=one)]))
    text = Field(key="a", match=models.MatchValue(value="x"))
    prefix = Field(key="b", match=models.MatchPrefix(prefix="x"))
    call = r"'b', .*create_payload_index\('b', {}\), or ingest --payload-index b={}"
    integer = call.format("'integer'", "integer")
    for chosen, words in (
        ({"a": 1, "b": 1}, r"filter\.must\[1\] is on " + integer),
        (
            models.Filter(should=[models.Filter(must_not=[empty])]),
            r"should\[0\]\.must_not\[0\] is on " + call.format("kind", "KIND"),
        ),
        (models.Filter(must=[Field(key="b", match=one)]), r"filter\.must\[0\] is on " + integer),
        (
            models.Filter(must=[text]),
            r"no payload index of kind keyword or uuid; .*create_payload_index\('a', 'keyword'\)",
        ),
        (
            models.Filter(must=[models.NestedCondition(nested=nested)]),
            r"must\[0\]\.nested\.filter\.must\[0\] is on 'c\[\]\.d'.*none for objects in a list",
        ),
        (models.Filter(must=[prefix]), r"is on 'b'.*KeywordIndexParams\(.*prefix=True\)"),
    ):
        for use in (index.count, index.delete_matching, lambda f: index.scroll(filter=f)):
            with pytest.raises(ConfigError, match=words):
                use(chosen)
    assert {*stand_in.seen} == {"GET /collections/images"}  # whether there is one by now
    # Only what would be refused is: a limit on deletes alone leaves searches.
    strict["strict_mode_config"]["unindexed_filtering_retrieve"] = True
    stand_in.answer("PATCH", ["collections", "images"], strict)
    index = engine.open()
    assert index.count({"b": 1}) == 1
    with pytest.raises(ConfigError, match="is on 'b', which has no payload index"):
        index.delete_matching({"b": 1})
    engine.close()


def test_edge_refuses_ranges_by_an_index_of_the_other_kind(tmp_path: Path) -> None:
    index = edge_engine(tmp_path).create()
    index.upsert([Point(image_id(0), unit_vectors(1)[0], {"a": "2024-05-05"})])
    assert index.count(models.Filter(must=[DATES])) == 1
    index.create_payload_index("a", "datetime")
    assert index.count(models.Filter(must=[DATES])) == 1
    with pytest.raises(ConfigError, match="asks for numbers, but the field has a payload index"):
        index.count(models.Filter(must_not=[models.Filter(must=[NUMBERS])]))
    index.create_payload_index("a", "integer")
    with pytest.raises(ConfigError, match="asks for dates, but the field has a payload index"):
        index.count(models.Filter(must=[DATES]))
    index.close()


def test_tests_of_several_values_mean_the_same(tmp_path: Path, stand_in: StandIn) -> None:
    payloads: list[dict[str, Any]] = [
        {},
        {"a": []},
        {"a": [{"x": None}]},
        {"a": [{"x": 1}, {"x": None}]},
        {"a": [{"x": 1}, {}]},
        {"a": [{"x": [1, None]}]},
    ]
    for engine in (
        edge_engine(tmp_path / "edge"),
        faiss_engine(tmp_path / "faiss"),
        qdrant_engine(stand_in.url),
    ):
        index = engine.create()
        vectors = unit_vectors(len(payloads))
        index.upsert([Point(image_id(n), vectors[n], p) for n, p in enumerate(payloads)])
        numbers = {image_id(n): n for n in range(len(payloads))}
        for test, expected in (
            ({"is_null": True}, [2, 3, 5]),
            ({"is_null": False}, [0, 1, 3, 4]),
            ({"is_empty": True}, [0, 1, 2]),
            ({"is_empty": False}, [3, 4, 5]),
        ):
            pages = index.scroll(filter=models.Filter(must=[Field(key="a[].x", **test)]))
            assert sorted(numbers[p.id] for page in pages for p in page) == expected
        engine.close()
