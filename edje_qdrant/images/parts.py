"""Parts of files that are images of their own: frames of films and pages of documents."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

__all__ = ["Part", "PartKind", "Survey", "part_of", "size_and_time"]

PartKind: TypeAlias = Literal["frame", "page"]

# W3C Media Fragments (normal play time in seconds) and RFC 8118.
_FRAGMENT = re.compile(r"(.+)#(?:t=(\d{1,9}(?:\.\d{1,3})?)|page=(\d{1,9}))", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """Name one frame of a film or one page of a document; decoder processes read it.

    Attributes:
        path: Absolute path of the film or the document.
        kind: `frame` or `page`.
        at: Milliseconds from the film's start, or the number of the page from 1.
        stamp: Size and time of change that the file had when it was named (`size_and_time`); one
            that has changed since then is refused. None reads it all the same.
    """

    path: str
    kind: PartKind
    at: int
    stamp: tuple[int, int] | None = None

    @property
    def fragment(self) -> str:
        """Return how a URI names the part: `t=12.5` or `page=3`."""
        if self.kind == "page":
            return f"page={self.at}"
        seconds, thousandths = divmod(self.at, 1000)
        return f"t={seconds}" + f".{thousandths:03}".rstrip("0").rstrip(".")

    @property
    def name(self) -> str:
        """Return the path of the image: that of the file, and the fragment."""
        return f"{self.path}#{self.fragment}"


@dataclass(frozen=True, slots=True)
class Survey:
    """Hold what a film or a document says about its parts.

    Attributes:
        pages: Number of pages; 0 for films.
        last: Milliseconds from the film's start at which its last frame begins; 0 for documents.
        whole: Milliseconds that the film lasts by its header, if its data end earlier, since it
            was not copied or recorded to its end; else None.
    """

    pages: int = 0
    last: int = 0
    whole: int | None = None


def part_of(path: str) -> Part | None:
    """Return the part that a stored path names: `/films/a.mp4#t=12`; None if it names a file.

    A file that exists under the whole name is no part.
    """
    found = _FRAGMENT.fullmatch(path)
    if found is None or os.path.exists(path):
        return None
    file, time, page = found.groups()
    if page is not None:
        return Part(file, "page", int(page)) if int(page) else None
    return Part(file, "frame", round(Fraction(time) * 1000))


def size_and_time(status: os.stat_result) -> tuple[int, int]:
    """Return a file's size and time of change; both are compared before a part is read."""
    return status.st_size, status.st_mtime_ns
