"""Reports of maintenance functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["CompactReport", "CopyReport", "Finding", "FindingKind", "RepairReport", "VerifyReport"]

#: Kinds of findings; images with one of the first four cannot be ranked. `other program` is a
#: point that another program put there: no image of this package.
FindingKind = Literal[
    "tokens missing",
    "tokens damaged",
    "record used twice",
    "other model",
    "other program",
    "other codec",
    "picture gone",
    "picture changed",
    "encoded otherwise",
]


@dataclass(frozen=True, slots=True)
class CompactReport:
    """Report moved tokens.

    Attributes:
        moved: Number of images whose tokens were rewritten.
        unreadable: Ids of images whose tokens were not moved, as they cannot be read.
        bytes_before: Size of the side files before, in bytes.
        bytes_after: Size of the side files after, in bytes.
        left_out: Ids of points that other programs wrote.
    """

    moved: int
    unreadable: tuple[str, ...]
    bytes_before: int = 0
    bytes_after: int = 0
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CopyReport:
    """Report a copy.

    Attributes:
        copied: Number of images written.
        skipped: Number of images that existed already.
        nbytes: Size of the tokens of both as stored, in bytes.
        left_out: Ids of points that other programs wrote to the source.
    """

    copied: int
    skipped: int
    nbytes: int
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """Describe a problem of one image.

    Attributes:
        kind: Kind of problem.
        image_id: Id of the image; digits for a point of another program whose id is an integer.
        path: File of the image, if the payload names it.
        detail: Message of the error, or what was expected.
    """

    kind: FindingKind
    image_id: str
    path: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Report the result of `verify`.

    Attributes:
        points: Number of points in the index.
        findings: Problems, image by image.
        orphan_records: Number of records that no point refers to; they only take disk space.
        orphan_bytes: Their size in bytes.
        unlisted_files: Side files that the manifest does not list, left by a crash.
    """

    points: int
    findings: tuple[Finding, ...]
    orphan_records: int
    orphan_bytes: int
    unlisted_files: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Return whether no image has a problem; orphaned records are not counted."""
        return not self.findings

    def counts(self) -> dict[str, int]:
        """Return the number of findings of each kind."""
        counts: dict[str, int] = {}
        for finding in self.findings:
            counts[finding.kind] = counts.get(finding.kind, 0) + 1
        return counts

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "clean": self.clean,
            "points": self.points,
            "counts": self.counts(),
            "findings": [
                {"kind": f.kind, "image_id": f.image_id, "path": f.path, "detail": f.detail}
                for f in self.findings
            ],
            "orphan_records": self.orphan_records,
            "orphan_bytes": self.orphan_bytes,
            "unlisted_files": list(self.unlisted_files),
        }


@dataclass(frozen=True, slots=True)
class RepairReport:
    """Report a repair.

    Attributes:
        encoded: Ids of images that were encoded again.
        left: Problems that could not be repaired.
        compacted: Report of the removal of orphaned records, for tokens in side files.
        deleted: Ids of points of other programs that were deleted.
    """

    encoded: tuple[str, ...]
    left: tuple[Finding, ...]
    compacted: CompactReport
    deleted: tuple[str, ...] = ()
