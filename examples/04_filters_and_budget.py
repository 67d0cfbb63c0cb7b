"""Search with filters, groups, a time budget and a minimum score.

python examples/04_filters_and_budget.py [INDEX]
"""

from __future__ import annotations

import sys

from qdrant_client import models

from edje_qdrant import ImageCollection, SearchResult, TwoStageRetriever

QUERY = "a huge black star on the left of a white moon"


def main(index: str = "example-index") -> None:
    """Give the images some fields, then search by them."""
    with ImageCollection.open(index, "images") as collection:
        collection.update_payload(
            {
                image_id: {"year": 2020 + n % 5, "book": f"book {n // 6}"}
                for n, image_id in enumerate(collection.ids())
            }
        )
        collection.create_payload_index("year", "integer")
        collection.flush()
    with TwoStageRetriever.open(index) as retriever:
        show("two years", retriever.search(QUERY, top_k=3, filter={"year": [2020, 2024]}))
        since = models.FieldCondition(key="year", range=models.Range(gte=2022))
        show("since", retriever.search(QUERY, top_k=3, filter=models.Filter(must=[since])))
        show("books", retriever.search(QUERY, top_k=3, group_by="book"))
        show("in 30 ms", retriever.search(QUERY, top_k=3, num_candidates=50, budget_ms=30))
        show("sure", retriever.search(QUERY, top_k=3, min_score="auto"))


def show(what: str, result: SearchResult) -> None:
    """Print a result in a few lines."""
    print(f"{what}: {result.scored} of {result.candidates} candidates scored")
    for hit in result:
        score = "not scored" if hit.score is None else f"{hit.score:+.2f}"
        print(f"  {score}  {hit.payload['year']}  {hit.payload['book']}  {hit.payload['path']}")
    if result.degraded:
        print(f"  {result.reason}")


if __name__ == "__main__":
    main(*sys.argv[1:])
