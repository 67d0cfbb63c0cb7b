"""The version of a Qdrant server, and the version that each feature needs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from edje_qdrant.errors import ConfigError, StoreError

__all__ = ["NEEDS", "OLDEST", "ServerVersion", "Version"]

#: Major and minor.
Version = tuple[int, int]

#: Older servers are refused: they keep no metadata with a collection, which this package needs.
OLDEST: Version = (1, 16)

#: What may be sent to a server -> first version that knows it, from the protocol files of Qdrant's
#: releases 1.0.0 to 1.19.0. Conditions, matches, queries and parameters have the names of the
#: client's classes; payload indexes and quantization the names that `PayloadKind` and
#: `Quantization` give them. Over REST an older server refuses what it does not know. Over gRPC it
#: drops a condition without an error, so that more points match, and ignores a parameter.
NEEDS: dict[str, Version] = {
    # Conditions.
    "FieldCondition": (1, 0),
    "Filter": (1, 0),
    "HasIdCondition": (1, 0),
    "IsEmptyCondition": (1, 0),
    "IsNullCondition": (1, 2),
    "NestedCondition": (1, 2),
    "MinShould": (1, 8),
    "HasVectorCondition": (1, 13),
    "SliceCondition": (1, 19),
    # Tests of a field, in place of a condition's own class.
    "match": (1, 0),
    "range": (1, 0),
    "geo_bounding_box": (1, 0),
    "geo_radius": (1, 0),
    "values_count": (1, 0),
    "geo_polygon": (1, 5),
    "is_empty": (1, 14),
    "is_null": (1, 14),
    "Range": (1, 0),
    "DatetimeRange": (1, 8),
    # Matches.
    "MatchValue": (1, 0),
    "MatchText": (1, 0),
    "MatchAny": (1, 1),
    "MatchExcept": (1, 2),
    "MatchPhrase": (1, 15),
    "MatchTextAny": (1, 16),
    "MatchPrefix": (1, 19),
    "MatchSubstring": (1, 20),  # qdrant-client 1.20 sends it; 1.19.0 does not know it
    # Queries and parameters of a search.
    "QueryRequest": (1, 10),
    "RecommendQuery": (1, 10),
    "RrfQuery": (1, 17),  # its weights; without them: 1.16
    "QuantizationSearchParams": (1, 1),
    "AcornSearchParams": (1, 16),
    # Collections.
    "metadata": (1, 16),
    "memory placement": (1, 19),
    # Writes.
    "UpdateMode": (1, 17),
    "new vector": (1, 18),  # in a collection that exists
    "deletion of a vector": (1, 18),
    # Payload indexes.
    "keyword": (1, 0),
    "integer": (1, 0),
    "float": (1, 0),
    "geo": (1, 0),
    "bool": (1, 4),
    "datetime": (1, 8),
    "uuid": (1, 11),
    "text": (1, 15),  # its setting phrase_matching; text indexes without it: 1.0
    # Quantization.
    "int8": (1, 1),
    "product-x4": (1, 2),
    "product-x8": (1, 2),
    "product-x16": (1, 2),
    "product-x32": (1, 2),
    "product-x64": (1, 2),
    "binary": (1, 5),
    "turbo1": (1, 18),
    "turbo1.5": (1, 18),
    "turbo2": (1, 18),
    "turbo4": (1, 18),
    "turbo8": (1, 20),  # qdrant-client 1.20 sends it; 1.19.0 does not know it
}

# Seconds for which a version is relied on: a server may be replaced while a collection is open.
_KEPT = 60.0


class ServerVersion:
    """A server's version, read at once, and again before anything is refused because of it.

    Args:
        ask: Return the server's version, such as "1.18.3"; None if it may not be known.
        address: The server's name in errors.

    Raises:
        StoreError: The server is older than the oldest supported version.
    """

    def __init__(self, ask: Callable[[], str | None], address: str) -> None:
        self._ask, self._address = ask, address
        self._read()

    def require(self, feature: str, where: str, *, again: bool = False) -> None:
        """Check that the server knows a feature; of unknown version, it is taken for the oldest.

        What the oldest supported version knows costs nothing. For the rest the server is asked for
        its version again if that would not suffice, or was read more than a minute ago.

        Args:
            feature: A key of `NEEDS`.
            where: What asks for it, for the message.
            again: Whether to ask the server in any case.

        Raises:
            ConfigError: The server is too old; names the version that is needed and the server's.
        """
        needed = NEEDS[feature]
        if needed <= OLDEST:
            return
        if again or self._number < needed or time.monotonic() > self._until:
            self._read()
        if self._number < needed:
            named = f"Qdrant {self._found}"
            if self._found is None:
                named = f"a server of unknown version, taken for {_text(OLDEST)},"
            raise ConfigError(
                f"{where} is a {feature}, which {named} does not know; leave it out, or use Qdrant "
                f"{_text(needed)} or later"
            )

    def knows(self, feature: str) -> bool:
        """Return whether the server knows a feature, as far as its version is known."""
        return self._number >= NEEDS[feature]

    def _read(self) -> None:
        self._found = self._ask()
        self._until = time.monotonic() + _KEPT
        number = re.match(r"(\d+)\.(\d+)", self._found or "")
        self._number: Version = (int(number[1]), int(number[2])) if number else OLDEST
        if self._number < OLDEST:
            raise StoreError(
                f"the server at {self._address} is Qdrant {self._found}, which keeps no metadata "
                f"with a collection; use Qdrant {_text(OLDEST)} or later"
            )


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
