"""The payload fields of a collection, from a sample of its points, and mistakes in filters."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from edje_qdrant.errors import ConfigError, EngineUnavailableError
from edje_qdrant.index.filters.field_paths import TOKENS_KEY
from edje_qdrant.index.filters.filter import Filter, qdrant_filter
from edje_qdrant.index.filters.match import is_moment, is_place
from edje_qdrant.index.filters.validate import clauses
from edje_qdrant.index.index import Keep, VectorIndex
from edje_qdrant.types import Payload, Point

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = [
    "SAMPLE",
    "FieldSample",
    "FilterProblem",
    "PayloadField",
    "Value",
    "filter_problems",
    "nearest_name",
    "sample_fields",
]

#: Points that are looked at. Ids are made from the images' content, so the first ones in order of
#: id are a random sample.
SAMPLE = 500

#: A value that `FIELD=VALUE` can name.
Value: TypeAlias = "str | int | bool"

# Seconds for a server to say whether any point has a field.
_PATIENCE = 5.0

# Depth of objects in a payload that are looked into.
_DEEPEST = 4

_KINDS = {
    "keyword": "text",
    "integer": "whole numbers",
    "float": "numbers",
    "bool": "true or false",
    "datetime": "dates",
    "geo": "places",
}
_NAMES_SHOWN = 8

# Items of a list in a path.
_LIST = re.compile(r"\[\d*\]")

# A year, a month or a day.
_PART_OF_TIME = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")


@dataclass(slots=True)
class PayloadField:
    """A payload field, as seen in a sample of points.

    Attributes:
        name: As filters take it: a field of an object has its name after a dot, `camera.maker`.
        points: Points of the sample that have it.
        kinds: What it holds, by the names of payload indexes -> points: `keyword`, `integer`,
            `float`, `bool`, `datetime` (a text that is a date or a time) and `geo`.
        values: Texts, whole numbers and truth values of the sample -> points that have them.
    """

    name: str
    points: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    values: Counter[tuple[str, Value]] = field(default_factory=Counter)

    def most_common(self, count: int) -> list[tuple[Value, int]]:
        """Return the most frequent values, with the number of points that have each."""
        ordered = sorted(self.values.items(), key=lambda each: (-each[1], str(each[0][1])))
        return [(value, number) for (_, value), number in ordered[:count]]


@dataclass(frozen=True, slots=True)
class FieldSample:
    """The payload fields of a sample of points.

    Attributes:
        fields: Name -> field, most frequent first.
        points: Points of the sample.
        complete: Whether the sample is the whole collection.
    """

    fields: Mapping[str, PayloadField]
    points: int
    complete: bool


@dataclass(frozen=True, slots=True)
class FilterProblem:
    """A condition of a filter by which nothing can be found.

    Attributes:
        field: The field, as the filter names it.
        kind: `"unknown"`: no point has the field. `"type"`: it holds values of another type than
            the condition asks for.
        message: What is wrong and what to do, as a sentence without a full stop.
        nearest: The field with the most similar name, if it is unknown and there is one.
    """

    field: str
    kind: Literal["unknown", "type"]
    message: str
    nearest: str | None = None


def sample_fields(index: VectorIndex, *, keep: Keep | None = None) -> FieldSample:
    """Look at the payloads of up to `SAMPLE` points.

    Args:
        index: The index.
        keep: Which points count; None for all.

    Raises:
        StoreError: The index cannot be read.
        EngineUnavailableError: The server cannot be reached.
    """
    points: list[Point] = []
    complete = True
    for page in index.scroll(batch_size=SAMPLE):
        points += page
        if len(points) >= SAMPLE:
            complete = False
            break
    payloads = [p.payload for p in points if keep is None or keep(p.id, p.payload)]
    found: dict[str, PayloadField] = {}
    for payload in payloads:
        _add(payload, found)
    ordered = sorted(found.values(), key=lambda each: (-each.points, each.name))
    return FieldSample({each.name: each for each in ordered}, len(payloads), complete)


def filter_problems(
    index: VectorIndex, filter: Filter | None, sample: FieldSample | None = None
) -> list[FilterProblem]:
    """Return the conditions of a filter by which nothing can be found.

    A field that the sample lacks is asked for: without a payload index, an engine then reads every
    payload, as it does in a search with that filter. A server that does not answer within five
    seconds, or refuses, leaves it at the sample.

    Args:
        index: The index.
        filter: The filter.
        sample: From `sample_fields`; None looks at the points first.

    Raises:
        ConfigError: The filter cannot be used.
        StoreError: The index cannot be read.
    """
    given = qdrant_filter(filter)
    if given is None:
        return []
    if sample is None:
        sample = sample_fields(index)
    problems: dict[str, FilterProblem] = {}
    for name, condition in _conditions(given):
        if name in problems or not sample.points:
            continue
        known = sample.fields.get(name)
        if known is not None:
            message = _other_type(known, condition)
            if message is not None:
                problems[name] = FilterProblem(name, "type", message)
        elif not _is_object(name, sample) and (sure := _is_unknown(index, name, sample)) != "known":
            problems[name] = _unknown(name, sample, sure == "unknown")
    return [*problems.values()]


def _add(payload: Payload, found: dict[str, PayloadField]) -> None:
    """Count the fields of one point."""
    kinds: set[tuple[str, str]] = set()
    values: set[tuple[str, str, Value]] = set()
    for name, value in _leaves(payload, "", 0):
        if name == TOKENS_KEY or name.startswith(f"{TOKENS_KEY}."):
            continue
        kinds |= {(name, kind) for kind in _kinds_of(value)}
        if isinstance(value, str | int):  # 1 and True are equal, and so told apart by their type
            values.add((name, type(value).__name__, value))
    for name in {name for name, _ in kinds}:
        found.setdefault(name, PayloadField(name)).points += 1
    for name, kind in kinds:
        found[name].kinds[kind] += 1
    for name, kind, value in sorted(values, key=str):
        found[name].values[kind, value] += 1


def _leaves(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield name and value of everything that a filter can name; items of a list one by one."""
    if isinstance(value, Mapping) and not is_place(value):
        if depth == _DEEPEST:
            return
        for key, inner in value.items():
            if isinstance(key, str) and key and not {*key} & {*'."\\[]'}:
                yield from _leaves(inner, f"{name}.{key}" if name else key, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            if not isinstance(item, Mapping | list | tuple) or is_place(item):
                yield name, item
    elif name and value is not None:
        yield name, value


def _kinds_of(value: Any) -> tuple[str, ...]:
    if isinstance(value, bool):
        return ("bool",)
    if isinstance(value, int):
        return ("integer",)
    if isinstance(value, float):
        return ("float",)
    if isinstance(value, str):
        return ("keyword", "datetime") if is_moment(value) else ("keyword",)
    return ("geo",) if is_place(value) else ()


def _conditions(filter: models.Filter) -> Iterator[tuple[str, Any]]:
    """Yield the field's name and the condition of each test of a field, at any depth."""
    for _, conditions in clauses(filter, ""):
        for _, condition in conditions:
            kind = type(condition).__name__
            if kind == "Filter":
                yield from _conditions(condition)
            elif kind == "NestedCondition":
                continue  # objects in a list are not in the sample
            elif kind == "FieldCondition" and (condition.is_empty, condition.is_null) == (
                None,
                None,
            ):
                yield _LIST.sub("", condition.key).replace('"', ""), condition


def _is_object(name: str, sample: FieldSample) -> bool:
    """Return whether a name is that of an object, whose fields have values."""
    return any(other.startswith(f"{name}.") for other in sample.fields)


def _is_unknown(
    index: VectorIndex, name: str, sample: FieldSample
) -> Literal["known", "unknown", "unsure"]:
    """Ask the engine for a point with a field."""
    if sample.complete:
        return "unknown"
    from qdrant_client import models

    path = ".".join(f'"{part}"' for part in name.split("."))
    # Engines test this in half the time of is_empty.
    some = models.FieldCondition(key=path, values_count=models.ValuesCount(gte=1))
    having = models.Filter(must=[some])
    try:
        with index.limit(1, lambda: _PATIENCE):
            first = next(iter(index.scroll(batch_size=1, filter=having, payload=False)), None)
    except (ConfigError, EngineUnavailableError):  # strict mode, or it takes too long
        return "unsure"
    return "unknown" if first is None else "known"


def _unknown(name: str, sample: FieldSample, sure: bool) -> FilterProblem:
    nearest = nearest_name(name, sample.fields)
    who = "no image has" if sure else f"none of {sample.points} images looked at has"
    if nearest is not None:
        advice = f"did you mean {nearest!r}?"
    elif sample.fields:
        names = [*sample.fields][:_NAMES_SHOWN]
        more = ", ..." if len(sample.fields) > _NAMES_SHOWN else ""
        advice = f"fields are {', '.join(names)}{more}"
    else:
        advice = "the images have no payload fields"
    return FilterProblem(name, "unknown", f"{who} a field {name!r}; {advice}", nearest)


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """Return the most similar name, or the only one that ends in `.name`; None if there is none."""
    folded = {each.casefold(): each for each in names}
    wanted = name.casefold()
    inner = [each for fold, each in folded.items() if fold.rpartition(".")[2] == wanted]
    if len(inner) == 1:
        return inner[0]
    close = difflib.get_close_matches(wanted, folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def _other_type(known: PayloadField, condition: Any) -> str | None:
    """Return a message if a field holds no value of the type that a condition asks for."""
    if (span := _span_of_times(known, condition)) is not None:
        return span
    asked = _asked_kinds(condition)
    if asked is None or not known.kinds or {*asked} & {*known.kinds}:
        return None
    holds = _KINDS[max(known.kinds, key=lambda kind: (known.kinds[kind], kind == "datetime"))]
    shown = [_written(value) for value, _ in known.most_common(2)]
    example = f" (such as {', '.join(shown)})" if shown else ""
    wanted = " or ".join(dict.fromkeys(_KINDS[kind] for kind in asked))
    return f"{known.name!r} holds {holds}{example}, and is compared with {wanted}"


def _span_of_times(known: PayloadField, condition: Any) -> str | None:
    """Return a message if a field holds times, and a condition names only days, months or years."""
    given = _equal_to(condition)
    spans = [span for value in given if (span := _span(str(value))) is not None]
    times = known.kinds["datetime"] == known.kinds["keyword"] == known.points
    if not spans or len(spans) < len(given) or not times:
        return None
    if any(_span(str(value)) is not None for _, value in known.values):  # stored as days
        return None
    bounds = f"{known.name}>={spans[0][0]} and {known.name}<{spans[0][1]}"
    return f"{known.name!r} holds times, and {given[0]} is none; for a span give {bounds}"


def _equal_to(condition: Any) -> Sequence[Any]:
    """Return the values that a condition accepts; none for other conditions."""
    kind = type(condition.match).__name__
    if kind == "MatchValue":
        return [condition.match.value]
    return [*condition.match.any] if kind == "MatchAny" else []


def _span(text: str) -> tuple[date, date] | None:
    """Return the first day of a year, a month or a day, and the day after it; None for others."""
    if not _PART_OF_TIME.fullmatch(text):
        return None
    year, month, day = (int(part) for part in [*text.split("-"), "0", "0"][:3])
    try:
        first = date(year, month or 1, day or 1)
        if day:
            return first, first + timedelta(days=1)
        return first, date(year + (month in (0, 12)), month % 12 + 1 if month else 1, 1)
    except (ValueError, OverflowError):  # 30 February, or the year 9999
        return None


def _asked_kinds(condition: Any) -> Sequence[str] | None:
    """Return the kinds of values that a condition can match; None for all."""
    if condition.range is not None:
        dates = type(condition.range).__name__ == "DatetimeRange"
        return ("datetime",) if dates else ("integer", "float")
    if any(
        getattr(condition, name) is not None
        for name in ("geo_radius", "geo_bounding_box", "geo_polygon")
    ):
        return ("geo",)
    match = condition.match
    kind = type(match).__name__
    if match is None or kind == "MatchExcept":
        return None
    if kind not in ("MatchValue", "MatchAny"):
        return ("keyword",)
    given = match.any if kind == "MatchAny" else [match.value]
    found = {next(k for k in _kinds_of(value) if k != "datetime") for value in given}
    return sorted(found)


def _written(value: Value) -> str:
    """Return a value as `FIELD=VALUE` takes it."""
    if isinstance(value, str):
        shown = value if len(value) <= 40 else f"{value[:37]}..."
        return f'"{shown}"'
    return str(value).lower() if isinstance(value, bool) else str(value)
