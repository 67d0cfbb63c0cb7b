"""Which images and captions are searched, which are asked, and what is reported."""

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
    """Hold what a protocol settles.

    Attributes:
        name: `karpathy` or `full`.
        shown: The figures its tables show; the JSON file has them all.
        num_candidates: Candidates reranked, where nothing else is asked for.
    """

    name: ProtocolName
    shown: tuple[str, ...]
    num_candidates: int


#: Karpathy's: one split is the pool and asks every question, R@1/5/10, ten candidates. Full pool:
#: the images and captions of all splits are the pool, R@5/10/20.
PROTOCOLS: dict[str, Protocol] = {
    "karpathy": Protocol("karpathy", ("R@1", "R@5", "R@10"), 10),
    "full": Protocol("full", ("R@5", "R@10", "R@20"), 50),
}


def choose(
    annotations: Sequence[Annotation], protocol: Protocol, split: str | None
) -> tuple[list[Annotation], list[Annotation] | None, str | None]:
    """Return the pool, those of it that ask (None: all), and the split's name.

    Files without splits are one pool. In a Karpathy file the Karpathy protocol takes `test` by
    default; under the full-pool protocol every caption asks, or those of a split that is named.

    Args:
        annotations: The whole file.
        protocol: Which.
        split: Of a Karpathy file.

    Raises:
        ConfigError: There is no such split; names those there are.
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
