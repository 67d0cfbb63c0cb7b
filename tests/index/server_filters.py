"""Which payloads match a filter on a Qdrant server, as recorded from 1.18.3 and 1.19.0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from qdrant_client import models
from qdrant_client.local import payload_filters as local
from qdrant_client.local.payload_value_extractor import value_by_key

Version = tuple[int, int]


def unread_words(filter: models.Filter, version: Version) -> str | None:
    """Return what this version says to a condition that it does not know; None if it knows all."""
    for condition in all_conditions(filter):
        match = getattr(condition, "match", None)
        if isinstance(condition, models.SliceCondition) and version < (1, 19):
            return (
                'Expected some form of condition, which can be a field condition (like {"key": ...,'
                ' "match": ... }), or some other mentioned in the documentation: '
                "https://qdrant.tech/documentation/concepts/filtering/#filtering-conditions"
            )
        if (isinstance(match, models.MatchPrefix) and version < (1, 19)) or (
            isinstance(match, models.MatchSubstring) and version < (1, 20)
        ):
            return "data did not match any variant of untagged enum MatchInterface"
    return None


def needed_indexes(filter: models.Filter, inside: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield the fields that a filter asks for, and the kinds of index that strict mode accepts."""
    for condition in direct_conditions(filter):
        if isinstance(condition, models.Filter):
            yield from needed_indexes(condition, inside)
        elif isinstance(condition, models.NestedCondition):
            key = condition.nested.key.removesuffix("[]")
            yield from needed_indexes(condition.nested.filter, f"{inside}{key}[].")
        else:
            named = getattr(condition, "is_empty", None) or getattr(condition, "is_null", None)
            key = getattr(named, "key", None) or getattr(condition, "key", None)
            match = getattr(condition, "match", None)
            if key is not None and getattr(match, "any", [""]) and getattr(match, "except_", [""]):
                yield inside + key, _kinds(condition)


def _kinds(condition: Any) -> list[str]:
    match, asked = getattr(condition, "match", None), getattr(condition, "range", None)
    if match is not None:
        if isinstance(match, models.MatchText | models.MatchTextAny | models.MatchPhrase):
            return ["text"]
        (value,) = match.model_dump().values()
        first = value[0] if isinstance(value, list) else value
        return [{str: "keyword", bool: "bool", int: "integer"}[type(first)]]
    if asked is not None:
        return ["float", "integer"] if isinstance(asked, models.Range) else ["datetime"]
    if any(getattr(condition, f"geo_{shape}", None) for shape in ("radius", "bounding_box")):
        return ["geo"]
    return ["bool", "datetime", "float", "geo", "integer", "keyword", "text", "uuid"]


def listed_values(condition: Any) -> int:
    """Return how many values or ids a condition lists."""
    match = getattr(condition, "match", None)
    listed = getattr(condition, "has_id", None) or getattr(match, "any", None)
    return len(listed or getattr(match, "except_", None) or [])


def server_matches(
    filter: models.Filter,
    payload: Mapping[str, Any],
    point_id: Any,
    indexes: Mapping[str, str],
    version: Version,
) -> bool:
    """Tell whether a point matches.

    Args:
        filter: The filter.
        payload: The point's payload.
        point_id: The point's id.
        indexes: Field path -> kind of payload index.
        version: Major and minor version of the server.
    """

    def test(condition: Any) -> bool:
        if isinstance(condition, models.Filter):
            return server_matches(condition, payload, point_id, indexes, version)
        if isinstance(condition, models.NestedCondition):
            inner, key = condition.nested.filter, condition.nested.key
            elements = local.nested_filter_values(dict(payload), key)
            return any(server_matches(inner, each, -1, {}, version) for each in elements)
        if isinstance(condition, models.IsNullCondition):
            key = condition.is_null.key
            values = value_by_key(dict(payload), key, flat=False) or []
            return any(_null(value, lists=key in indexes) for value in values)
        if isinstance(condition, models.FieldCondition):
            return _field(condition, dict(payload), indexes.get(condition.key), version)
        return local.check_condition(condition, dict(payload), point_id, {"": True})

    most = filter.min_should
    return (
        all(map(test, _listed(filter.must)))
        and not any(map(test, _listed(filter.must_not)))
        and (not filter.should or any(map(test, _listed(filter.should))))
        and (most is None or sum(map(test, most.conditions)) >= most.min_count)
    )


def _field(
    condition: models.FieldCondition, payload: dict[str, Any], index: str | None, version: Version
) -> bool:
    whole = value_by_key(payload, condition.key, flat=False) or []
    values = value_by_key(payload, condition.key) or []
    if condition.is_null is not None:
        if not whole:
            return not condition.is_null
        return any(_null(value, lists=True) == condition.is_null for value in whole)
    if condition.is_empty is not None:
        if not whole:
            return condition.is_empty
        return any(local.value_is_empty(value) == condition.is_empty for value in whole)
    if condition.values_count is not None and not whole and version < (1, 19):
        return False
    if condition.match is not None:
        return any(_match(condition.match, value, index) for value in values)
    if condition.range is not None:
        return any(_range(condition.range, value, index) for value in values)
    return local.check_condition(condition, payload, 0, {})


def _match(match: Any, value: Any, index: str | None) -> bool:
    if index != "text" and isinstance(value, str):  # without words, a substring is looked for
        if isinstance(match, models.MatchText):
            return match.text in value
        if isinstance(match, models.MatchPhrase):
            return match.phrase in value
        if isinstance(match, models.MatchTextAny):
            return any(word in value for word in match.text_any.split())
    given = getattr(match, "any", None) or getattr(match, "except_", None) or [""]
    numbers = type(getattr(match, "value", given[0])) is int
    if index == "integer" and numbers:  # it holds whole numbers, and floats cut to such
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return local.check_match(match, int(value))
    if index == "keyword" and isinstance(match, models.MatchExcept) and not match.except_:
        return isinstance(value, str)
    return local.check_match(match, value)


def _range(asked: Any, value: Any, index: str | None) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(asked, models.Range):
        if index == "datetime":  # dates are whole numbers of microseconds to it
            moment = local.datetime_utils.parse(value) if isinstance(value, str) else None
            return moment is not None and local.check_range(asked, _microseconds(moment))
        if index != "integer" and number:
            value = float(value)
        return local.check_range(asked, value)
    if index in ("integer", "float"):
        bounds = {
            name: bound if bound is None else _microseconds(bound)
            for name, bound in ((name, getattr(asked, name)) for name in ("gt", "gte", "lt", "lte"))
        }
        return number and local.check_range(models.Range(**bounds), value)
    return local.check_range_interface(asked, value)


def _microseconds(moment: datetime) -> float:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return moment.timestamp() * 1e6


def _null(value: Any, lists: bool) -> bool:
    return value is None or (lists and isinstance(value, list) and None in value)


def _listed(conditions: Any) -> Sequence[Any]:
    return conditions if isinstance(conditions, list) else [conditions] if conditions else []


def direct_conditions(filter: models.Filter) -> list[Any]:
    """Return the conditions of all clauses, not those inside them."""
    least = filter.min_should.conditions if filter.min_should else []
    clauses = (filter.must, filter.should, filter.must_not, least)
    return [condition for clause in clauses for condition in _listed(clause)]


def all_conditions(filter: models.Filter) -> list[Any]:
    """Return the conditions of a filter at any depth."""
    found: list[Any] = []
    for condition in direct_conditions(filter):
        found.append(condition)
        if isinstance(condition, models.Filter):
            found += all_conditions(condition)
        if isinstance(condition, models.NestedCondition):
            found += all_conditions(condition.nested.filter)
    return found
