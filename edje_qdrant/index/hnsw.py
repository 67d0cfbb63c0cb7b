"""Settings of the search graph (HNSW), shared by the engines.

Texts and pictures lie apart in the encoder's space, so a query is never close to the vectors the
graph was built on; with the engines' defaults (16 links, width 100) a walk then misses a quarter
and more of the true top 100. These settings find 99% and more. Up to 100 MB of vectors a plain
scan is exact and no slower than such a walk, so no graph is built below that.
"""

from __future__ import annotations

__all__ = ["BUILD_WIDTH", "LINKS", "SCAN_KILOBYTES", "search_width"]

#: Links of each node.
LINKS = 32

#: Candidates kept while a node is linked in.
BUILD_WIDTH = 200

#: Segments with fewer kilobytes of vectors are scanned, not walked.
SCAN_KILOBYTES = 100_000


def search_width(limit: int) -> int:
    """Return how many candidates a walk keeps to find the best `limit`."""
    return max(512, 4 * limit)
