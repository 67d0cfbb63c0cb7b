"""Rankings made up for tests."""

from __future__ import annotations

import numpy as np

from edje_qdrant.evaluation.rankings import Direction, Rankings


def make_rankings(
    *,
    queries: int = 30,
    depth: int = 25,
    pool: int = 40,
    seed: int = 0,
    direction: Direction = "t2i",
    good: float = 3.0,
    answers: list[str] | None = None,
) -> Rankings:
    """Random first stage; the joint scores of right answers are higher by `good`."""
    rng = np.random.default_rng(seed)
    candidates = np.stack([rng.permutation(pool)[:depth] for _ in range(queries)])
    owners = np.arange(queries) % pool
    right = candidates == owners[:, None]
    first = -np.sort(-rng.random((queries, depth)).astype(np.float32), axis=1)
    joint = rng.standard_normal((queries, depth)).astype(np.float32) + good * right
    return Rankings(
        direction=direction,
        queries=[f"query {n}" for n in range(queries)],
        answers=answers or [f"/pictures/{n}.png" for n in range(pool)],
        candidates=candidates,
        first=first,
        joint=joint.astype(np.float32),
        right=right,
        rights=[(int(owner),) for owner in owners],
        clusters=owners // 2,
        pool=pool,
    )
