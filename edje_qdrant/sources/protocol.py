"""What every source of images does: list its images, without opening them where it can."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from edje_qdrant.images import Part
from edje_qdrant.images.parts import PartKind
from edje_qdrant.types import FailedImage, Payload

__all__ = ["FailedLine", "Fetched", "ImageSource", "ListedImage", "Listing"]


class Fetched(NamedTuple):
    """Hold the bytes of an image's file, and its stamp if the server gave one with them."""

    content: bytes
    stamp: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class ListedImage:
    """Hold one image of a source: its path, the user's fields, and how it is read.

    An image with neither `content`, `reader` nor `part` is the local file at `path`.

    Attributes:
        path: Names this image alone, and is stored: the absolute path of a file, a URI, or either
            of them with a fragment that names a part of it (`/shards/1.tar#member=a.jpg`).
        fields: Fields of the image's manifest line, list item or row; empty if there are none.
        content: The bytes of the image's file, if they are in memory already.
        reader: Reads these bytes, and raises ImageReadError; called in threads of this process,
            for images that are not stored yet. It need not be picklable.
        stamp: Fields of the payload by which a later ingest sees at this path that the image is
            unchanged, and does not read it: `etag`, or `file_size` and `modified_at`. Empty if
            there are none; for a local file they are found later.
        look: Asks for the stamp where that takes a request, and raises ImageReadError; called in
            threads, for images of whose path one is stored.
        image_id: The image's id, where it is not derived from the bytes of its file: of a page or
            a frame, which would not be the same bytes with another library.
        part: The frame of a local film, or the page of a local document, that decoder processes
            read.
    """

    path: str
    fields: Payload
    content: bytes | None = field(default=None, repr=False)
    reader: Callable[[], Fetched] | None = field(default=None, repr=False, compare=False)
    stamp: Mapping[str, Any] = field(default_factory=dict)
    look: Callable[[], Mapping[str, Any]] | None = field(default=None, repr=False, compare=False)
    image_id: str | None = None
    part: Part | None = None


class FailedLine(FailedImage):
    """A line of a manifest that names no image; which stored image it meant is not known."""

    __slots__ = ()


Listing: TypeAlias = "Iterator[ListedImage | FailedImage]"


class ImageSource(ABC):
    """A source of images, such as a folder.

    Attributes:
        name: Names the source in messages.
        scope: Beginnings of the paths of the images that belong to the source; with `prune`, those
            that are gone from it are deleted. Empty if it is a part of something else, so that
            nothing can be pruned; None if it names all images of a collection.
        left_out: What the source holds beside images, by kind, and how often; known after it was
            listed to its end. Kinds may end with a detail in brackets: `video (.mov)`.
        kinds: Which parts of files are listed, frames of films or pages of documents. With `prune`,
            those of other kinds stay as long as their file is there.
    """

    name: str
    scope: tuple[str, ...] | None = None
    left_out: Mapping[str, int] = {}
    kinds: frozenset[PartKind] = frozenset()

    @abstractmethod
    def images(self) -> Listing:
        """List the source from its start, in the same order at each call.

        The list is not held in memory. What cannot be read is listed as failed.

        Raises:
            ConfigError: The source as a whole cannot be read.
        """

    def count(self) -> int | None:
        """Return the number of images and failures listed; None if counting would read images."""
        return sum(1 for _ in self.images())
