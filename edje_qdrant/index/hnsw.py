"""Settings of the search graph (HNSW), shared by the engines.

Texts and images lie apart in the encoder's space, so a query is never close to the vectors the
graph was built on; with the engines' defaults (16 links, width 100) a walk then misses a quarter
and more of the true top 100. These settings find 99% and more. Up to 100 MB of vectors a plain
scan is exact and no slower than such a walk, so no graph is built below that.

A walk that may only keep what a filter lets through gets lost where that is little. In a graph of
12,000 vectors with no index of the field it found 1 % of the true top 50 at 1 % let through, 69 %
at 10 %, 98 % at 30 %. A walk that also looks behind the neighbours that were left out (ACORN) found
94 %, 100 % and 100 %, and a scan of what is let through finds all. Its cost grows with what it
scans, but without an index, telling what is let through costs more. So filters are answered by a
scan, but for those known to let most through.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["BUILD_WIDTH", "LINKS", "SCAN_KILOBYTES", "Reach", "reach_of", "search_width"]

#: Links of each node.
LINKS = 32

#: Candidates kept while a node is linked in.
BUILD_WIDTH = 200

#: Segments with fewer kilobytes of vectors are scanned, not walked.
SCAN_KILOBYTES = 100_000


def search_width(limit: int) -> int:
    """Return how many candidates a walk keeps to find the best `limit`."""
    return max(512, 4 * limit)


class Reach(Enum):
    """Say which points a search may return.

    Attributes:
        ALL: Every point: walk.
        MOST: Most of them: walk, and look behind those that are left out.
        FEW: Half of them or fewer: scan.
    """

    ALL = "all"
    MOST = "most"
    FEW = "few"


# The engines take a filter on a field without an index to let half of the points through, so this
# is above a half, with room for rounding: what they cannot tell is scanned.
_FEW = 0.6


def reach_of(matching: int, total: int) -> Reach:
    """Return what a filter leaves to search, where it lets about `matching` of `total` through."""
    return Reach.FEW if matching <= _FEW * total else Reach.MOST
