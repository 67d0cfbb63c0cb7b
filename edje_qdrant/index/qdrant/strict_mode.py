"""Limits of a collection's strict mode, and what keeps requests within them.

A server in strict mode refuses a request that asks for more than a limit. Managed servers set some.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from edje_qdrant.errors import ConfigError
from edje_qdrant.index import hnsw
from edje_qdrant.index.filters.validate import clauses
from edje_qdrant.index.hnsw import Reach
from edje_qdrant.index.qdrant import failures
from edje_qdrant.index.qdrant.connection import Connection

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = [
    "Limits",
    "check_size",
    "exact_count",
    "is_about_limits",
    "least",
    "losses",
    "read_limits",
]

N = TypeVar("N", int, float)

# Servers end every refusal of the strict mode with advice.
_ADVICE = " Help: "

# Width of a search -> percentage of the true best 100 that it found (benchmarks/graph_width.py).
_BY_WIDTH = ((192, 100.0), (128, 99.9), (0, 99.7))

# Oversampling -> by what is allowed: percentage of the true best 100 that a search found, of 8-bit
# numbers and of the coarsest quantization (benchmarks/quantization.py).
_BY_OVERSAMPLING = {2.0: ((0.0, 98.9),), 4.0: ((2.0, 89.3), (0.0, 67.1))}

# Points of a page that are only counted.
_PAGE = 10_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a collection allows; None for no limit.

    Attributes:
        points_found: Points that a search or a page may ask for (`max_query_limit`).
        hnsw_ef: Width of a graph search (`search_max_hnsw_ef`).
        oversampling: Of quantized vectors (`search_max_oversampling`).
        exact: Whether scans and exact counts are allowed (`search_allow_exact`).
        points_written: Points in one upsert (`upsert_max_batchsize`).
        searches: Searches in one request (`search_max_batchsize`).
        seconds: Time limit of a request (`max_timeout`).
        conditions: Conditions in a filter (`filter_max_conditions`).
        values: Values or ids that one condition lists (`condition_max_size`).
        unindexed_reads: Whether a search may filter by fields without a payload index
            (`unindexed_filtering_retrieve`).
        unindexed_writes: Whether a delete may (`unindexed_filtering_update`).
    """

    points_found: int | None = None
    hnsw_ef: int | None = None
    oversampling: float | None = None
    exact: bool = True
    points_written: int | None = None
    searches: int | None = None
    seconds: int | None = None
    conditions: int | None = None
    values: int | None = None
    unindexed_reads: bool = True
    unindexed_writes: bool = True

    def timed(self, arguments: Mapping[str, int]) -> dict[str, int]:
        """Return the arguments that tell the server its time limit, within what it allows."""
        return {name: least(seconds, self.seconds) for name, seconds in arguments.items()}


def read_limits(info: models.CollectionInfo) -> Limits:
    """Return the limits of a collection from its description."""
    strict = info.config.strict_mode_config
    if strict is None or not strict.enabled:
        return Limits()
    return Limits(
        points_found=strict.max_query_limit,
        hnsw_ef=strict.search_max_hnsw_ef,
        oversampling=strict.search_max_oversampling,
        exact=strict.search_allow_exact is not False,
        points_written=strict.upsert_max_batchsize,
        searches=strict.search_max_batchsize,
        seconds=strict.max_timeout,
        conditions=strict.filter_max_conditions,
        values=strict.condition_max_size,
        unindexed_reads=strict.unindexed_filtering_retrieve is not False,
        unindexed_writes=strict.unindexed_filtering_update is not False,
    )


def least(wanted: N, limit: N | None) -> N:
    """Return what is wanted, or the limit if that is lower; 1 at least."""
    return wanted if limit is None else max(1, min(wanted, limit))


def losses(
    wanted: int, reach: Reach | None, oversampling: float | None, limits: Limits
) -> dict[str, str]:
    """Return what limits cost a search: setting of the strict mode -> words.

    Args:
        wanted: Points for each query.
        reach: How to search.
        oversampling: What a search would use without limits; None without quantization.
        limits: What the collection allows.
    """
    found: dict[str, str] = {}
    scanned = reach is Reach.FEW and limits.exact
    width = hnsw.search_width(wanted)
    if limits.hnsw_ef is not None and limits.hnsw_ef < width and not scanned:
        allowed = max(limits.hnsw_ef, wanted)  # a server keeps as many as are wanted
        share = next(share for least_width, share in _BY_WIDTH if allowed >= least_width)
        found["search_max_hnsw_ef"] = (
            f"a search of the graph keeps {allowed} candidates in place of {width}; of the true "
            f"best 100 of 12,000 images {share} % were found by that many, of more images it is "
            "less; collections below 100 MB of vectors have no graph and lose nothing"
        )
    allowed_factor = limits.oversampling
    if oversampling and allowed_factor is not None and allowed_factor < oversampling:
        share = next(share for factor, share in _BY_OVERSAMPLING[oversampling]
                     if allowed_factor >= factor)  # fmt: skip
        found["search_max_oversampling"] = (
            f"a search rescores {allowed_factor:g} candidates for each one wanted in place of "
            f"{oversampling:g}; of the true best 100 of 4,000 images {share} % were found"
        )
    if reach is Reach.FEW and not limits.exact:
        found["search_allow_exact"] = (
            "a search by a filter without a payload index follows the graph in place of a scan; of "
            "the true best 50 of 12,000 images 94 % were found where 1 % match, and all from 10 % "
            "on; create_payload_index keeps such searches exact where few match"
        )
    return found


def check_size(filter: models.Filter, limits: Limits) -> None:
    """Check that a filter is no larger than the collection allows.

    Raises:
        ConfigError: It has too many conditions, or one lists too many values; names the limit.
    """
    if limits.conditions is None and limits.values is None:
        return
    conditions = _conditions(filter, "filter")
    if limits.conditions is not None and len(conditions) > limits.conditions:
        raise ConfigError(
            f"filter comes to {len(conditions)} conditions on a server, and the collection's strict"
            f" mode allows {limits.conditions} (filter_max_conditions); use fewer, or raise that "
            "limit"
        )
    for place, condition in conditions:
        size = _values(condition)
        if limits.values is not None and size > limits.values:
            raise ConfigError(
                f"{place} lists {size} values, and the collection's strict mode allows "
                f"{limits.values} in one condition (condition_max_size); list fewer, spread them "
                "over several conditions under should, or raise that limit"
            )


def exact_count(
    connection: Connection, name: str, chosen: models.Filter | None, limits: Limits
) -> int:
    """Count the chosen points; page by page where exact counts are not allowed."""
    client = connection.client
    if limits.exact:
        return connection.call(name, client.count, name, chosen, exact=True).count
    found, start = 0, None
    while True:
        records, start = connection.call(
            name,
            client.scroll,
            name,
            scroll_filter=chosen,
            limit=least(_PAGE, limits.points_found),
            offset=start,
            with_payload=False,
            with_vectors=False,
        )
        found += len(records)
        if start is None:
            return found


def is_about_limits(error: ConfigError) -> bool:
    """Return whether a server's refusal is of its strict mode; True if no server was asked."""
    cause = error.__cause__
    return not isinstance(cause, Exception) or _ADVICE in failures.says(cause)


def _conditions(filter: models.Filter, where: str) -> list[tuple[str, Any]]:
    """Return all conditions that a server counts, with the place of each."""
    found: list[tuple[str, Any]] = []
    for _, conditions in clauses(filter, where):
        for place, condition in conditions:
            kind = type(condition).__name__
            if kind == "Filter":
                found += _conditions(condition, place)
            elif kind == "NestedCondition":
                found += _conditions(condition.nested.filter, f"{place}.nested.filter")
            else:
                found.append((place, condition))
    return found


def _values(condition: Any) -> int:
    """Return how many values a condition lists, as a server counts them."""
    match = getattr(condition, "match", None)
    for listed in (
        getattr(condition, "has_id", None),
        getattr(match, "any", None),
        getattr(match, "except_", None),
    ):
        if listed is not None:
            return len(listed)
    return 0
