"""The pool of an evaluation: images in a collection, with their captions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.data.annotations import Annotation, group_by_image
from edje_qdrant.encoders import clean_caption
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import image_file_id
from edje_qdrant.types import FailedImage

__all__ = ["Gallery", "build_gallery"]


@dataclass(frozen=True, slots=True, eq=False)
class Gallery:
    """Hold `n` images and `m` captions, each of which belongs to one image.

    Files with the same bytes are one image, as in a collection, with the captions of all of them.

    Attributes:
        image_ids: `n` UUID strings.
        paths: `n` paths, one for each image.
        captions: `m` texts; those of an image are consecutive.
        owner: `(m,)` int64: the image each caption belongs to.
        asked: `(n,)` bool: whether an image and its captions are queries; all are in the pool.
        failed: Images that could not be read; their captions are left out.
        lost_captions: Number of these captions.
        twins: Number of paths left out because another path has the same bytes.
    """

    image_ids: tuple[str, ...]
    paths: tuple[str, ...]
    captions: tuple[str, ...]
    owner: NDArray[np.int64]
    asked: NDArray[np.bool_]
    failed: tuple[FailedImage, ...] = field(default=())
    lost_captions: int = 0
    twins: int = 0

    def __len__(self) -> int:
        return len(self.image_ids)

    def digest(self) -> str:
        """Return a short hash of the images, independent of their order."""
        return hashlib.sha256("\n".join(sorted(self.image_ids)).encode()).hexdigest()[:8]

    def without(self, failures: Mapping[str, str]) -> Gallery:
        """Return the gallery without some images.

        Args:
            failures: Path -> why the image could not be read.

        Raises:
            ConfigError: No image, or no query, is left.
        """
        if not failures:
            return self
        kept = np.array([path not in failures for path in self.paths])
        rows = np.cumsum(kept) - 1
        stays = kept[self.owner]
        failed = [FailedImage(path, failures[path]) for path in self.paths if path in failures]
        return _checked(
            Gallery(
                tuple(i for i, keep in zip(self.image_ids, kept, strict=True) if keep),
                tuple(p for p, keep in zip(self.paths, kept, strict=True) if keep),
                tuple(c for c, keep in zip(self.captions, stays, strict=True) if keep),
                rows[self.owner[stays]],
                self.asked[kept],
                (*self.failed, *failed),
                self.lost_captions + int((~stays).sum()),
                self.twins,
            )
        )


def _identified(annotations: Sequence[Annotation]) -> tuple[dict[str, str], list[FailedImage]]:
    """Read every image file once; return path -> id, and the files that could not be read."""
    paths = dict.fromkeys(annotation.image for annotation in annotations)
    found = {path: _identify(path) for path in paths}
    ids = {path: outcome for path, outcome in found.items() if isinstance(outcome, str)}
    return ids, [failed for failed in found.values() if isinstance(failed, FailedImage)]


def _identify(path: str) -> str | FailedImage:
    try:
        return image_file_id(path)
    except ImageReadError as error:
        return FailedImage(path, error.reason)


def build_gallery(
    annotations: Sequence[Annotation], *, asked: Sequence[Annotation] | None = None
) -> Gallery:
    """Build the pool; image files are read, but not decoded.

    Args:
        annotations: The pool.
        asked: The part of the pool that is used as queries; all by default.

    Raises:
        ConfigError: A caption contains no word (names file and line), or no image that is a query
            can be read.
    """
    _check_captions(annotations)
    annotations = group_by_image(annotations)
    wanted = None if asked is None else {annotation.image for annotation in asked}
    ids, failed = _identified(annotations)
    texts: dict[str, list[str]] = {}
    paths: dict[str, str] = {}
    queries: dict[str, bool] = {}
    lost = 0
    for annotation in annotations:
        image_id = ids.get(annotation.image)
        if image_id is None:
            lost += len(annotation.captions)
            continue
        paths.setdefault(image_id, annotation.image)
        texts.setdefault(image_id, []).extend(annotation.captions)
        is_asked = wanted is None or annotation.image in wanted
        queries[image_id] = queries.get(image_id, False) or is_asked
    sizes = [len(captions) for captions in texts.values()]
    return _checked(
        Gallery(
            tuple(texts),
            tuple(paths[image_id] for image_id in texts),
            tuple(caption for captions in texts.values() for caption in captions),
            np.repeat(np.arange(len(sizes)), sizes),
            np.array([queries[image_id] for image_id in texts], dtype=np.bool_),
            tuple(failed),
            lost,
            len(ids) - len(texts),
        )
    )


def _check_captions(annotations: Sequence[Annotation]) -> None:
    for annotation in annotations:
        for caption in annotation.captions:
            if not clean_caption(caption):
                raise ConfigError(
                    f"{annotation.where}: the caption {caption!r} of {annotation.image} contains "
                    "no word; correct or remove it"
                )


def _checked(gallery: Gallery) -> Gallery:
    if not gallery.asked.any():
        first = f" ({gallery.failed[0].path}: {gallery.failed[0].reason})" if gallery.failed else ""
        raise ConfigError(
            f"no image is left to evaluate: {len(gallery.failed)} cannot be read{first}; "
            "give the folder of the annotations' relative paths with --images (images=)"
        )
    return gallery
