"""Filters in the form in which a Qdrant server finds what they mean on every other engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.filters.filter import Filter, qdrant_filter
from edje_qdrant.index.filters.validate import KINDS, check_range_index, clauses
from edje_qdrant.index.qdrant.versions import ServerVersion

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = [
    "ServerFacts",
    "has_indexes",
    "memory_filter",
    "require_indexes",
    "require_versions",
    "server_filter",
]

_WORDS = ("MatchText", "MatchTextAny", "MatchPhrase")

# Settings of a text index by which words are found as they are without one on other engines.
_TEXT_SETTINGS: dict[str, tuple[Any, ...]] = {
    "tokenizer": (None, "word"),
    "lowercase": (None, True),
    "ascii_folding": (None, False),
    "min_token_len": (None, 0, 1),
    "max_token_len": (None,),
    "stopwords": (None,),
    "stemmer": (None,),
}

# Kinds of payload index by which a server knows how many points match: by the type of the value
# that a match asks for, and by the type of any other test.
_INDEX_OF_VALUE = {"str": ("keyword", "uuid"), "int": ("integer",), "bool": ("bool",)}
_INDEX_OF_TEST = {
    **dict.fromkeys(_WORDS, ("text",)),
    "MatchPrefix": ("keyword",),
    "Range": ("integer", "float"),
    "DatetimeRange": ("datetime",),
    "GeoBoundingBox": ("geo",),
    "GeoRadius": ("geo",),
    "GeoPolygon": ("geo",),
}
_TESTS = ("match", "range", "geo_bounding_box", "geo_radius", "geo_polygon")
_VALUES = ("value", "any", "except_")

# Conditions whose matches a server counts without a payload index.
_COUNTED = ("HasIdCondition", "HasVectorCondition")

_Change: TypeAlias = Callable[[Any, str, bool], Any]


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What filters depend on.

    Attributes:
        version: The server's version.
        index: Return the payload index of a field path, as the server describes it; None if
            there is none. The second argument says whether to ask the server again.
    """

    version: ServerVersion
    index: Callable[[str, bool], Any]


def server_filter(filter: Filter | None, facts: ServerFacts) -> models.Filter | None:
    """Convert a filter to what a server must be asked; None for every point.

    Servers differ from the other engines, and from version to version:

    - Without an index of the field, `is_null` as a condition of its own overlooks a null in a list;
      as a test of a field it does not.
    - `is_empty` as a test of a field asks whether any of a path's values is empty; as a condition
      of its own, whether all are.
    - Before 1.19, `values_count` does not count a missing field as 0 values.
    - Without a text index, words are looked for as a substring, case included.

    Raises:
        ConfigError: It cannot be filtered by, or the server would find something else; names the
            place.
    """
    from qdrant_client import models

    def change(condition: Any, where: str, nested: bool) -> Any:
        kind = type(condition).__name__
        if kind == "IsNullCondition":
            return models.FieldCondition(key=condition.is_null.key, is_null=True)
        if kind != "FieldCondition":
            return condition
        if condition.is_empty:
            return models.IsEmptyCondition(is_empty=models.PayloadField(key=condition.key))
        if type(condition.match).__name__ in _WORDS:
            _require_text_index(condition, where, nested, facts)
        if condition.range is not None and not nested:
            check_range_index(condition, _kind(facts.index(condition.key, False)), where)
        if condition.values_count is not None and _includes_zero(condition.values_count):
            empty = models.PayloadField(key=condition.key)
            return models.Filter(should=[condition, models.IsEmptyCondition(is_empty=empty)])
        return condition

    given = qdrant_filter(filter)
    if given is None:
        return None
    require_versions(given, facts.version)
    return _rewritten(given, change, "filter", False)


def memory_filter(filter: Filter | None) -> models.Filter | None:
    """Convert a filter for the client's memory mode; None for every point.

    Raises:
        ConfigError: It cannot be filtered by, or memory mode finds something else; names the place.
    """

    def change(condition: Any, where: str, nested: bool) -> Any:  # noqa: ARG001 - of all changes
        if getattr(condition, "is_null", None) is False and "[]" in condition.key:
            raise ConfigError(
                f"{where} asks on {condition.key!r} whether any value is not null, which "
                "qdrant-client's memory mode mistakes for none is; ask for is_null=True under "
                "must_not if that is meant, or keep the collection in a folder or on a server"
            )
        return condition

    given = qdrant_filter(filter)
    return None if given is None else _rewritten(given, change, "filter", False)


def require_versions(
    filter: models.Filter, version: ServerVersion, where: str = "filter", *, again: bool = False
) -> None:
    """Check that the server knows every condition, at any depth.

    Args:
        filter: What a server is to be asked.
        version: The server's version.
        where: The filter's place, for messages.
        again: Whether to read the version again if a condition depends on it.

    Raises:
        ConfigError: It is too old for a condition; names the condition and both versions.
    """
    for name, conditions in clauses(filter, where):
        if name == "min_should":
            version.require("MinShould", f"{where}.{name}", again=again)
        for place, condition in conditions:
            kind = type(condition).__name__
            version.require(kind, place, again=again)
            if kind == "Filter":
                require_versions(condition, version, place, again=again)
            if kind == "NestedCondition":
                inner = condition.nested.filter
                require_versions(inner, version, f"{place}.nested.filter", again=again)
            if kind == "FieldCondition":
                for test in KINDS:
                    asked = getattr(condition, test)
                    if asked is not None:
                        named = f"{place}.{test} on {condition.key!r}"
                        version.require(test, named, again=again)
                        if test in ("match", "range"):
                            version.require(type(asked).__name__, named, again=again)


def require_indexes(
    filter: models.Filter, facts: ServerFacts, where: str = "filter", inside: str = ""
) -> None:
    """Check that every field of a filter has a payload index, as strict mode wants it.

    Args:
        filter: What a server is to be asked.
        facts: The server.
        where: The filter's place, for messages.
        inside: Path of the list whose objects the filter is about, such as `boxes[].`.

    Raises:
        ConfigError: A field has none, or one of another kind; names the condition, and how to make
            it.
    """
    for _, conditions in clauses(filter, where):
        for place, condition in conditions:
            kind = type(condition).__name__
            if kind == "Filter":
                require_indexes(condition, facts, place, inside)
            if kind == "NestedCondition":
                within = f"{inside}{condition.nested.key.removesuffix('[]')}[]."
                require_indexes(condition.nested.filter, facts, f"{place}.nested.filter", within)
            key = getattr(getattr(condition, "is_empty", None), "key", None)
            key = key or getattr(condition, "key", None)
            if key is None:
                continue
            key, fitting = f"{inside}{key}", _fitting(condition)
            prefix = type(getattr(condition, "match", None)).__name__ == "MatchPrefix"
            if fitting == () or any(
                _fits(facts.index(key, again), fitting, prefix) for again in (False, True)
            ):
                continue
            found = f"{place} is on {key!r}, which has no payload index"
            if fitting:
                found += f" of kind {' or '.join(fitting)}"
            remedy = _remedy(key, fitting, prefix)
            raise ConfigError(
                f"{found}; the collection is in strict mode, where filters need one: {remedy}"
            )


def _fits(index: Any, fitting: tuple[str, ...] | None, prefix: bool) -> bool:
    if index is None or (prefix and not getattr(index.params, "prefix", None)):
        return False
    return fitting is None or _kind(index) in fitting


def _remedy(key: str, fitting: tuple[str, ...] | None, prefix: bool) -> str:
    """Return how to make a payload index."""
    if "[" in key:
        return "there is none for objects in a list; store it in a field of its own"
    if prefix:
        return (
            "make it with Qdrant's client and "
            "KeywordIndexParams(type='keyword', prefix=True) as field_schema"
        )
    given, named = ("kind", "KIND") if fitting is None else (repr(fitting[0]), fitting[0])
    return f"create_payload_index({key!r}, {given}), or ingest --payload-index {key}={named}"


def has_indexes(filter: models.Filter, indexes: Mapping[str, Any]) -> bool:
    """Return whether a server knows from payload indexes how many points match every condition.

    Args:
        filter: What a server is asked.
        indexes: Field path -> payload index, as the server describes it.
    """
    return all(
        _has_index(condition, indexes)
        for _, conditions in clauses(filter, "")
        for _, condition in conditions
    )


def _has_index(condition: Any, indexes: Mapping[str, Any]) -> bool:
    kind = type(condition).__name__
    if kind == "Filter":
        return has_indexes(condition, indexes)
    if kind == "IsEmptyCondition":
        return condition.is_empty.key in indexes
    if kind != "FieldCondition":
        return kind in _COUNTED
    return _kind(indexes.get(condition.key)) in (_fitting(condition) or ())


def _fitting(condition: Any) -> tuple[str, ...] | None:
    """Return the kinds of payload index by which a server tests a field; None for any kind."""
    tests = (getattr(condition, name, None) for name in _TESTS)
    test = next((test for test in tests if test is not None), None)
    if test is None:
        return None
    value = next((getattr(test, name) for name in _VALUES if hasattr(test, name)), None)
    if value is None:
        return _INDEX_OF_TEST.get(type(test).__name__, ())
    first = value[0] if isinstance(value, list) and value else value
    return _INDEX_OF_VALUE.get(type(first).__name__, ())


def _rewritten(filter: models.Filter, change: _Change, where: str, nested: bool) -> models.Filter:
    """Return a copy of the filter in which every condition is replaced by what `change` returns."""
    from qdrant_client import models

    def one(condition: Any, place: str) -> Any:
        kind = type(condition).__name__
        if kind == "Filter":
            return _rewritten(condition, change, place, nested)
        if kind == "NestedCondition":
            inner = _rewritten(condition.nested.filter, change, f"{place}.nested.filter", True)
            return models.NestedCondition(
                nested=models.Nested(key=condition.nested.key, filter=inner)
            )
        return change(condition, place, nested)

    made: dict[str, Any] = {
        name: [one(condition, place) for place, condition in conditions]
        for name, conditions in clauses(filter, where)
    }
    if filter.min_should is not None:
        made["min_should"] = models.MinShould(
            conditions=made["min_should"], min_count=filter.min_should.min_count
        )
    return models.Filter(**made)


def _require_text_index(condition: Any, where: str, nested: bool, facts: ServerFacts) -> None:
    """Check that the server has an index by which it finds words.

    Raises:
        ConfigError: It has none, or one with other settings.
    """
    key = condition.key
    asked = f"{where}.match on {key!r} asks for words, which a server finds only by a payload index"
    if nested or "[" in key:
        raise ConfigError(
            f"{asked}, and there is none for objects in a list; store the text in a field of its "
            "own, or keep the collection in a folder"
        )
    index = facts.index(key, False)
    if _kind(index) != "text":
        index = facts.index(key, True)  # it may be new
    create = f"create_payload_index({key!r}, 'text'), or ingest --payload-index {key}=text"
    if _kind(index) != "text":
        raise ConfigError(f"{asked} of kind text; create it: {create}")
    phrase = type(condition.match).__name__ == "MatchPhrase"
    for name, allowed in _TEXT_SETTINGS.items() | (
        {("phrase_matching", (True,))} if phrase else set()
    ):
        value = getattr(index.params, name, None)
        if getattr(value, "value", value) not in allowed:
            raise ConfigError(
                f"{asked}; that of this field was made with {name}={getattr(value, 'value', value)}"
                f", which finds others than the embedded engines do; replace it: {create}"
            )


def _includes_zero(count: Any) -> bool:
    return (
        (count.lt is None or count.lt > 0)
        and count.gt is None
        and (count.gte is None or count.gte <= 0)
    )


def _kind(index: Any) -> str | None:
    """Return the kind of a payload index as the server describes it."""
    kind = None if index is None else index.data_type
    return None if kind is None else str(getattr(kind, "value", kind))
