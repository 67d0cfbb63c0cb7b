"""Search the collection of 01_ingest.py, and show what reranking changed.

python examples/02_search.py ["a red star above a blue ring"] [INDEX]
"""

from __future__ import annotations

import sys

from edje_qdrant import TwoStageRetriever


def main(text: str = "a red star above a blue ring", index: str = "example-index") -> None:
    """Print the hits with the scores and ranks of both stages, then the next page."""
    with TwoStageRetriever.open(index) as retriever:  # with the model that wrote the collection
        result = retriever.search(text, top_k=5, num_candidates=50)
        for page in (result, result.next(5)):
            for hit in page:
                print(
                    f"#{hit.rank} (was #{hit.retrieval_rank})  logit {hit.score:+.2f}  "
                    f"cosine {hit.retrieval_score:.3f}  {hit.payload['path']}"
                )
            print()
        print({stage: f"{ms:.1f} ms" for stage, ms in result.timings.as_dict().items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
