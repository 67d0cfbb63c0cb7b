"""JSON lines with the outcome of every query, and a sheet of those that reranking harmed most."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.evaluation.contact_sheet import SheetRow, draw_contact_sheet
from edje_qdrant.evaluation.rankings import Rankings, places
from edje_qdrant.files import os_errors_as_store_errors

__all__ = ["draw_worst", "worst", "write_cases"]

_SHOWN = 5


def write_cases(rankings: Rankings, num_candidates: int, path: Path) -> None:
    """Write one JSON object for each query.

    Fields: `query`; `right`, the right answers; `first_rank` and `final_rank` of the first right
    answer, null if none was retrieved; `change`: `win` if reranking improved its rank, `loss` if
    it worsened it, `same` otherwise; `first_score` and `joint_score` of the right answer with the
    best final rank; `top`, the answer ranked first, with its scores.

    Args:
        rankings: Rankings of one model in one direction.
        num_candidates: Candidates reranked.
        path: A `.jsonl` file; overwritten.

    Raises:
        StoreError: The file cannot be written.
    """
    order = rankings.order(num_candidates)
    before = places(rankings.right)
    after = places(rankings.right_after(num_candidates))
    with (
        os_errors_as_store_errors("write the queries to", path),
        path.open("w", encoding="utf-8") as file,
    ):
        for query, text in enumerate(rankings.queries):
            first, final = before[query], after[query]
            found = None if final is None else int(order[query, final - 1])
            case = {
                "query": text,
                "right": [rankings.answers[row] for row in rankings.rights[query]],
                "first_rank": first,
                "final_rank": final,
                "change": _change(first, final),
                **_scores(rankings, query, found),
                "top": _top(rankings, query, int(order[query, 0])),
            }
            print(json.dumps(case), file=file)


def worst(rankings: Rankings, num_candidates: int, count: int) -> list[int]:
    """Return the queries that reranking harmed most, then those it helped least.

    Harm is the loss in reciprocal rank: from rank 1 to 3 is worse than from 10 to 50. Queries whose
    right answer is ranked first in the end, or was not retrieved, are left out, as the second stage
    did not cause an error there.
    """
    before, after = _gains(rankings, 0), _gains(rankings, num_candidates)
    blamed = np.flatnonzero((after < 1) & (before > 0))
    order = np.lexsort((blamed, after[blamed], (after - before)[blamed]))
    return [int(query) for query in blamed[order][:count]]


def draw_worst(rankings: Rankings, num_candidates: int, path: Path, *, count: int = 8) -> bool:
    """Draw the worst queries of text-to-image rankings; return whether there were any.

    Args:
        rankings: Text-to-image rankings.
        num_candidates: Candidates reranked.
        path: A PNG; overwritten.
        count: Maximum number of queries shown.

    Raises:
        StoreError: The file cannot be written.
    """
    chosen = worst(rankings, num_candidates, count)
    if not chosen:
        return False
    order = rankings.order(num_candidates)
    before = places(rankings.right)
    after = places(rankings.right_after(num_candidates))
    rows = [
        SheetRow(
            query=rankings.queries[query],
            right=[Path(rankings.answers[row]) for row in rankings.rights[query]],
            first_stage=_paths(rankings, query, np.arange(_SHOWN)),
            reranked=_paths(rankings, query, order[query, :_SHOWN]),
            first_rank=before[query],
            final_rank=after[query],
        )
        for query in chosen
    ]
    harmed = sum(_change(before[query], after[query]) == "loss" for query in range(len(rankings)))
    title = (
        f"The worst of {len(rankings):,} queries at {num_candidates} candidates: "
        f"reranking pushed the right image back in {harmed:,}"
    )
    with os_errors_as_store_errors("draw the worst queries to", path):
        draw_contact_sheet(rows, title, path)
    return True


def _gains(rankings: Rankings, num_candidates: int) -> NDArray[np.float64]:
    ranks = places(rankings.right_after(num_candidates))
    return np.array([0.0 if rank is None else 1.0 / rank for rank in ranks])


def _change(first: int | None, final: int | None) -> str:
    if first is None or final is None or first == final:
        return "same"
    return "win" if final < first else "loss"


def _scores(rankings: Rankings, query: int, place: int | None) -> dict[str, float | None]:
    if place is None:
        return {"first_score": None, "joint_score": None}
    return {
        "first_score": round(float(rankings.first[query, place]), 6),
        "joint_score": round(float(rankings.joint[query, place]), 6),
    }


def _top(rankings: Rankings, query: int, place: int) -> dict[str, str | float | None]:
    row = int(rankings.candidates[query, place])
    return {"answer": rankings.answers[row], **_scores(rankings, query, place)}


def _paths(rankings: Rankings, query: int, shown: NDArray[np.int64]) -> list[Path]:
    rows = rankings.candidates[query, shown[shown < rankings.depth]]
    return [Path(rankings.answers[row]) for row in rows if row >= 0]
