"""Dates and times in payloads and filters, as the texts that are stored for them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timezone
from typing import Any

__all__ = ["json_default", "moment_text", "with_moments_as_text"]


def moment_text(moment: date) -> str:
    """Return the RFC 3339 text that is stored for a date, or for a date with a time.

    A time is stored in UTC: `2024-05-17T10:00:00Z`. One without a time zone is taken to be in UTC,
    as Qdrant takes it. A date stays one: `2024-05-17`; to a range it is its first moment in UTC.

    Raises:
        ValueError: In UTC its year is not one of 1 to 9999.

    Example:
        >>> from datetime import datetime, timedelta, timezone
        >>> moment_text(datetime(2024, 5, 17, 12, tzinfo=timezone(timedelta(hours=2))))
        '2024-05-17T10:00:00Z'
        >>> moment_text(datetime(2024, 5, 17, 12, 0, 0, 500000))
        '2024-05-17T12:00:00.500000Z'
    """
    if not isinstance(moment, datetime):
        return moment.isoformat()
    try:
        if moment.utcoffset() is None:
            moment = moment.replace(tzinfo=timezone.utc)
        text = moment.astimezone(timezone.utc).replace(tzinfo=None).isoformat()
    except OverflowError as error:
        raise ValueError(f"{moment!r} is in no year from 1 to 9999 in UTC") from error
    return f"{text}Z"


def with_moments_as_text(value: Any) -> Any:
    """Return a value of a payload with the text of each date in it; other values stay.

    Raises:
        ValueError: As `moment_text`.
    """
    if isinstance(value, date):
        return moment_text(value)
    if isinstance(value, Mapping):
        return {key: with_moments_as_text(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [with_moments_as_text(each) for each in value]
    return value


def json_default(value: Any) -> str:
    """Return the text of a date for `json.dumps(default=...)`.

    Raises:
        TypeError: It is no date; JSON has nothing for it.
        ValueError: As `moment_text`.
    """
    if isinstance(value, date):
        return moment_text(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
