"""Settings of the search graph (HNSW), shared by the engines.

Texts and images lie in different regions of the encoder's space, so a query is never close to the
vectors that the graph was built on. With the engines' defaults (16 links, width 100) a search of
the graph misses a quarter or more of the true top 100; with these settings it finds 99 % or more.
Up to 100 MB of vectors a scan is exact and not slower, so no graph is built below that.

A graph search with a filter that few points match finds little. In a graph of 12,000 vectors
without an index of the field it found 1 % of the true top 50 where 1 % of the points match, 69 % at
10 %, 98 % at 30 %. A search that also follows the neighbours of points that do not match (ACORN)
found 94 %, 100 % and 100 %; a scan of the matching points finds all. The cost of the scan grows
with their number, but without an index, finding them costs more. So on Edge a filtered search is a
scan, unless the filter is known to match most points.

Asking a server how many points match would take two more requests for each search. With an index
for each condition the server knows the number itself, and scans where few match; told to use ACORN
otherwise, Edge, which has the same engine, found 100 % at every share from 0.2 % to 99 %. So a
server is told to scan only if a condition has no fitting index.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["BUILD_WIDTH", "LINKS", "SCAN_KILOBYTES", "Reach", "reach_of", "search_width"]

#: Links of each node.
LINKS = 32

#: Candidates kept while a node is linked.
BUILD_WIDTH = 200

#: Segments with fewer kilobytes of vectors have no graph and are scanned.
SCAN_KILOBYTES = 100_000


def search_width(limit: int) -> int:
    """Return how many candidates a graph search keeps (`ef`) to find the best `limit`."""
    return max(512, 4 * limit)


class Reach(Enum):
    """How many points a search may return.

    Attributes:
        ALL: Every point: search the graph.
        MOST: Most of them: search the graph with ACORN. With an index of what the filter asks for,
            the engine scans if only few points match.
        FEW: Half of them or fewer, or an unknown number: scan.
    """

    ALL = "all"
    MOST = "most"
    FEW = "few"


# The engines estimate that a filter on a field without an index matches half of the points. This is
# above a half, with a margin for rounding, so that such searches are scans.
_FEW = 0.6


def reach_of(matching: int, total: int) -> Reach:
    """Return how to search with a filter that about `matching` of `total` points match."""
    return Reach.FEW if matching <= _FEW * total else Reach.MOST
