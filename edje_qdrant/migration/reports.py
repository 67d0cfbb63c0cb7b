"""What the steps of a migration report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Agreement", "CutOverReport", "MigrationReport", "MigrationStatus", "MissingImage"]


@dataclass(frozen=True, slots=True)
class MissingImage:
    """Name an image that cannot be encoded again.

    Attributes:
        image_id: UUID string.
        path: The stored path; None if there is none.
        reason: Why its file cannot be used.
    """

    image_id: str
    path: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """Hold the outcome of one run of `migrate`.

    Attributes:
        to: Name of the new side.
        encoded: Images that this run encoded with the new model.
        updated: Images whose fields had changed since an earlier run, and were copied again.
        deleted: Images that were deleted from the collection since, and from the new side now.
        images: Images of the collection.
        done: Those of them that the new side holds.
        missing: Those that cannot be encoded, with the reason.
        left_out: Points that other programs wrote; they are not migrated.
        seconds: Duration.
    """

    to: str
    encoded: int
    updated: int
    deleted: int
    images: int
    done: int
    missing: tuple[MissingImage, ...]
    left_out: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CutOverReport:
    """Hold the outcome of a cut-over.

    Attributes:
        model: Name of the model that is searched with now.
        images: Images that are searched now.
        caught_up: Images that were written, changed or deleted by the old model since the last run
            of `migrate`, and by processes that had the collection open at the cut-over.
        left_out: Images that could not be encoded and are not in the collection any more.
    """

    model: str | None
    images: int
    caught_up: int
    left_out: tuple[MissingImage, ...]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Compare the rankings of the two models for some texts.

    Attributes:
        texts: Number of texts.
        depth: Hits compared for each text, at most.
        overlap: Mean share of the first `depth` hits that both models find.
        same_first: Share of the texts with the same first hit.
        tau: Mean Kendall's tau of the order of the hits that both find, -1 to 1; None if no text
            has two such hits.
    """

    texts: int
    depth: int
    overlap: float
    same_first: float
    tau: float | None


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """Say how far a collection's migration is.

    Attributes:
        state: `encoding` while the old model is searched with. `closing` if a cut-over was
            interrupted before it changed over; other processes cannot write then. `rolling back`
            if the removal of the new side was interrupted. After the cut-over: `settling` if it was
            interrupted before other processes were kept from searching with the old model, `kept`
            while it can be gone back, and `dropping` while the old side is deleted.
        model: Name of the model that is searched with.
        other: Name of the other model: the new one before the cut-over, the old one after it.
        images: Images of the side that is searched.
        other_images: Images of the other side.
        side: Name of the other side.
    """

    state: Literal["encoding", "closing", "rolling back", "settling", "kept", "dropping"]
    model: str | None
    other: str | None
    images: int
    other_images: int
    side: str
