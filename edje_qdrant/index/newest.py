"""Points by the dates in their payloads, latest first, in pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.filters.filter import Filter, qdrant_filter
from edje_qdrant.types import Point

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = ["Dated", "NewestPage", "OrderingEngine", "merged", "moment_of"]

#: Where a page ended; JSON, made by an engine for itself.
Position: TypeAlias = Any

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FIRST = datetime(1, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class NewestPage:
    """A page of points, and where the next one starts; None after the last."""

    points: list[Point]
    next: Position


class Dated(NamedTuple):
    """A point, and its date in microseconds since 1970."""

    moment: int
    point: Point

    @property
    def key(self) -> tuple[int, tuple[int, str]]:
        """Return what points are ordered by: latest first, equal ones by id as an engine has it."""
        return -self.moment, _id_key(self.point.id)


class OrderingEngine(Protocol):
    """An engine that orders points by the dates in one field."""

    def translate(self, filter: Filter | None, timeout: float | None = None) -> Any:
        """Return a filter in the engine's form."""

    def page(
        self, start: Any, size: int, chosen: Any, *, payload: bool, tokens: bool, vectors: bool
    ) -> tuple[list[Point], Any]:
        """Read chosen points in order of id; `start` may also be the first one's id."""

    def latest(
        self, path: str, before: int | None, size: int, chosen: Any
    ) -> tuple[list[Dated], bool]:
        """Read chosen points with a date in a field, latest first.

        Args:
            path: The field.
            before: Only those before this moment, in microseconds since 1970.
            size: Points to read, at most.
            chosen: A translated filter.

        Returns:
            The points, with payloads without token bytes, and whether there are no more. Of those
            with the last date, any may be left out.
        """


def moment_of(microseconds: int) -> datetime:
    """Return the moment that is this many microseconds after 1970."""
    return _EPOCH + timedelta(microseconds=microseconds)


def merged(
    engine: OrderingEngine, fields: Sequence[str], start: Position, size: int, filter: Filter | None
) -> NewestPage:
    """Read a page by the first of several fields that holds a date.

    Points with dates in the first field are one stream, those without that have one in the second
    are another, and so on; the page is merged from them. Then come the points without any, by id.
    A stream is read by the engine's order of the field, but equal dates by id: so a position is a
    date and an id, however many points have that date.

    Args:
        engine: The engine.
        fields: Top-level fields, with a payload index of dates.
        start: None, or `next` of the page before.
        size: Points of a page.
        filter: Which points.

    Raises:
        ConfigError: `start` is not such a position, or the filter cannot be used.
    """
    ends, rest = _read(start, len(fields))
    streams: list[tuple[list[Dated], bool]] = []
    for number, field in enumerate(fields):
        if (end := ends[number]) is None:
            streams.append(([], True))
            continue
        others = _Choice(filter, fields[:number])
        streams.append(_stream(engine, field, others, end, size))
    tagged = [(dated, number) for number, (found, _) in enumerate(streams) for dated in found]
    tagged.sort(key=lambda each: (-each[0].moment, each[1], each[0].key))
    taken = tagged[:size]
    for number, (found, ended) in enumerate(streams):
        own = [dated for dated, stream in taken if stream == number]
        if ended and len(own) == len(found):
            ends[number] = None
        elif own:
            ends[number] = [own[-1].moment, own[-1].point.id]
    points = [dated.point for dated, _ in taken]
    if len(points) < size:
        more, rest = engine.page(
            rest, size - len(points), engine.translate(_Choice(filter, fields).chosen()),
            payload=True, tokens=False, vectors=False,
        )  # fmt: skip
        points += more
        if rest is None:
            return NewestPage(points, None)
    return NewestPage(points, [ends, rest if isinstance(rest, int | None) else str(rest)])


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which points: those that a filter chooses, without a date in some fields."""

    filter: Filter | None
    undated: Sequence[str]

    def chosen(self, *conditions: models.FieldCondition) -> models.Filter | None:
        """Return this as one filter, with more conditions."""
        from qdrant_client import models

        own = qdrant_filter(self.filter)
        must: list[Any] = [] if own is None else [own]
        must += conditions
        must_not = [_between(field, _FIRST, None) for field in self.undated]
        return (
            models.Filter(must=must or None, must_not=must_not or None)
            if must or must_not
            else None
        )


def _between(field: str, first: datetime, last: datetime | None) -> models.FieldCondition:
    from qdrant_client import models

    return models.FieldCondition(key=field, range=models.DatetimeRange(gte=first, lte=last))


def _stream(
    engine: OrderingEngine, field: str, choice: _Choice, end: list[Any], size: int
) -> tuple[list[Dated], bool]:
    """Return the next points with a date in a field, and whether there are no more.

    Args:
        engine: The engine.
        field: The field.
        choice: Which points.
        end: Date and id of the last point before; empty at the start.
        size: Points to read.
    """
    found: list[Dated] = []
    before: int | None = None
    if end:
        before = end[0]
        found = _equal(engine, field, choice, end[0], end[1], size)
        if len(found) == size:
            return found, False
    wanted = size - len(found)
    chosen = engine.translate(choice.chosen())
    latest, is_last = engine.latest(field, before, wanted, chosen)
    if is_last:
        return [*found, *sorted(latest, key=lambda dated: dated.key)], True
    # The engine may have left out some with the last date, in any order.
    last = latest[-1].moment
    found += sorted((dated for dated in latest if dated.moment > last), key=lambda d: d.key)
    found += _equal(engine, field, choice, last, None, size - len(found))
    return found, False


def _equal(
    engine: OrderingEngine, field: str, choice: _Choice, moment: int, after: str | None, size: int
) -> list[Dated]:
    """Return points with one date, in order of id, after an id."""
    at = moment_of(moment)
    chosen = engine.translate(choice.chosen(_between(field, at, at)))
    start = int(after) if after is not None and after.isdecimal() else after
    # The engine starts with the id itself, which was on the page before.
    points, _ = engine.page(
        start, size + 1, chosen, payload=True, tokens=False, vectors=False
    )  # fmt: skip
    return [Dated(moment, point) for point in points if point.id != after][:size]


def _read(start: Position, streams: int) -> tuple[list[Any], Any]:
    if start is None:
        return [[] for _ in range(streams)], None
    try:
        ends, rest = start
        for end in ends:
            if end:
                moment, point_id = end
                moment_of(moment)
                if not isinstance(point_id, str):
                    raise TypeError
        if len(ends) != streams or not isinstance(rest, str | int | None):
            raise TypeError
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            "the position is not of this list, or the payload indexes were changed; start from "
            "the first page"
        ) from error
    return [*ends], rest


def _id_key(point_id: str) -> tuple[int, str]:
    # Integers come first; all ids of this package are UUIDs.
    return (0, point_id.zfill(20)) if point_id.isdecimal() else (1, point_id)
