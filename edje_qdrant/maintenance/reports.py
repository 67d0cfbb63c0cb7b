"""Reports of maintenance functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "CompactReport",
    "CopyReport",
    "DuplicateGroup",
    "DuplicateImage",
    "DuplicatesReport",
    "Finding",
    "FindingKind",
    "RepairReport",
    "VerifyReport",
]

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
    "other words",
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
        words: Ids of images whose words were written again.
    """

    encoded: tuple[str, ...]
    left: tuple[Finding, ...]
    compacted: CompactReport
    deleted: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DuplicateImage:
    """Hold one image of a group.

    Attributes:
        image_id: Its id.
        path: Its file, if the payload names it.
        width: Pixels, if the payload has them.
        height: Pixels, likewise.
        file_size: Bytes of the file, likewise.
        taken_at: When it was taken, likewise.
        likeness: Likeness of its embedding with that of the group's first image.
        token_likeness: Likeness of its tokens with those of the first image.
        hash_distance: Bits in which its perceptual hash differs from that of the first image; None
            if they were not compared.
    """

    image_id: str
    path: str | None
    width: int | None
    height: int | None
    file_size: int | None
    taken_at: str | None
    likeness: float = 1.0
    token_likeness: float = 1.0
    hash_distance: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Hold images that are near-duplicates of the first of them.

    Attributes:
        images: The one to keep first: most pixels, then taken first, then largest file, then
            lowest id. Then the others, those most like it first.
    """

    images: tuple[DuplicateImage, ...]

    @property
    def extra(self) -> tuple[DuplicateImage, ...]:
        """Return all images but the first."""
        return self.images[1:]


@dataclass(frozen=True, slots=True)
class DuplicatesReport:
    """Report near-duplicates.

    Attributes:
        images: Number of images compared.
        groups: Groups of two and more, the largest first.
        hashed: Whether the image files were compared too.
        unread: Number of images in question whose file could not be read and compared.
        without_tokens: Number of images in question whose tokens cannot be read; they are in no
            group.
        mean_cosine: Mean cosine of two images' embeddings, the zero of the likeness.
        mean_token_cosine: Mean cosine of two images' tokens, likewise.
        seconds: Wall-clock time.
    """

    images: int
    groups: tuple[DuplicateGroup, ...]
    hashed: bool
    unread: int
    without_tokens: int
    mean_cosine: float
    mean_token_cosine: float
    seconds: float

    @property
    def extra_ids(self) -> list[str]:
        """Return the ids of all images but the first of each group: what could be deleted."""
        return [image.image_id for group in self.groups for image in group.extra]

    @property
    def extra_bytes(self) -> int:
        """Return the bytes of the files of these images, each file once."""
        kept = {group.images[0].path for group in self.groups}
        sizes = {
            image.path: image.file_size or 0
            for group in self.groups
            for image in group.extra
            if image.path not in kept
        }
        return sum(sizes.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "images": self.images,
            "groups": [[image.as_dict() for image in group.images] for group in self.groups],
            "extra": len(self.extra_ids),
            "extra_bytes": self.extra_bytes,
            "extra_ids": self.extra_ids,
            "hashed": self.hashed,
            "unread": self.unread,
            "without_tokens": self.without_tokens,
            "mean_cosine": round(self.mean_cosine, 4),
            "mean_token_cosine": round(self.mean_token_cosine, 4),
            "seconds": round(self.seconds, 3),
        }
