"""What maintenance found and did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["CompactReport", "CopyReport", "Finding", "FindingKind", "RepairReport", "VerifyReport"]

#: What can be wrong with an image, the first three so that it cannot be ranked.
FindingKind = Literal[
    "tokens missing",
    "tokens damaged",
    "record used twice",
    "other codec",
    "picture gone",
    "picture changed",
]


@dataclass(frozen=True, slots=True)
class CompactReport:
    """Sum up what moving tokens to new side files did.

    Attributes:
        moved: Images whose tokens were written anew.
        unreadable: Images whose tokens were left where they are, as they cannot be read.
        bytes_before: Size of the side files before.
        bytes_after: And after.
    """

    moved: int
    unreadable: tuple[str, ...]
    bytes_before: int = 0
    bytes_after: int = 0


@dataclass(frozen=True, slots=True)
class CopyReport:
    """Sum up a copy.

    Attributes:
        copied: Images written.
        skipped: Images that were there already.
        nbytes: Bytes of the tokens of both, as stored.
    """

    copied: int
    skipped: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Name what is wrong with one image.

    Attributes:
        kind: What is wrong.
        image_id: The image's id.
        path: Its file, where the payload names one.
        detail: The error's message, or what was expected.
    """

    kind: FindingKind
    image_id: str
    path: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Sum up what a collection's check found.

    Attributes:
        points: Images in the index.
        findings: What is wrong, image by image.
        orphan_records: Records in side files that no point refers to; they cost space alone.
        orphan_bytes: Their bytes.
        unlisted_files: Side files that the manifest does not list: a crash left them behind.
    """

    points: int
    findings: tuple[Finding, ...]
    orphan_records: int
    orphan_bytes: int
    unlisted_files: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Return whether nothing is wrong with any image; orphans are no fault."""
        return not self.findings

    def counts(self) -> dict[str, int]:
        """Return how many findings there are of each kind."""
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
    """Sum up a repair.

    Attributes:
        encoded: Ids of images whose tokens were made anew from their files.
        left: What could not be mended.
        compacted: What dropping orphans did, where tokens are in side files.
    """

    encoded: tuple[str, ...]
    left: tuple[Finding, ...]
    compacted: CompactReport
