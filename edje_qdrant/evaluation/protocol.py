"""Evaluation protocols: which images and captions are the pool and the queries, and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edje_qdrant.data.annotations import Annotation, of_split
from edje_qdrant.errors import ConfigError

__all__ = ["PROTOCOLS", "Protocol", "ProtocolName", "choose"]

ProtocolName = Literal["karpathy", "full"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """Hold the parameters of a protocol.

    Attributes:
        name: `karpathy` or `full`.
        shown: The metrics shown in tables; the JSON file contains all of them.
        num_candidates: Default number of candidates to rerank.
    """

    name: ProtocolName
    shown: tuple[str, ...]
    num_candidates: int


#: Karpathy: one split is both pool and queries; R@1/5/10, ten candidates. Full pool: the images
#: and captions of all splits are the pool; R@5/10/20.
PROTOCOLS: dict[str, Protocol] = {
    "karpathy": Protocol("karpathy", ("R@1", "R@5", "R@10"), 10),
    "full": Protocol("full", ("R@5", "R@10", "R@20"), 50),
}


def choose(
    annotations: Sequence[Annotation], protocol: Protocol, split: str | None
) -> tuple[list[Annotation], list[Annotation] | None, str | None]:
    """Return the pool, its part that is used as queries (None: all), and the split's name.

    A file without splits is one pool. In a Karpathy file the Karpathy protocol uses `test` by
    default; in the full-pool protocol every caption is a query, or those of `split` if given.

    Args:
        annotations: All annotations of the file.
        protocol: The protocol.
        split: A split of a Karpathy file.

    Raises:
        ConfigError: There is no such split; lists the existing ones.
    """
    parts = sorted({a.part for a in annotations if a.part is not None})
    if split is None and protocol.name == "karpathy" and parts:
        split = "test"
    if split is None:
        return [*annotations], None, None
    chosen = of_split(annotations, split)
    if not chosen:
        there = f"there are {', '.join(parts)}" if parts else "they have none; leave --split out"
        raise ConfigError(f"the annotations have no split {split!r}; {there}")
    if protocol.name == "karpathy":
        return chosen, None, split
    return [*annotations], chosen, split
