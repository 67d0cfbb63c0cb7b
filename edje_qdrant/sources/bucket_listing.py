"""Images below an address of a bucket, or one image at an address."""

from __future__ import annotations

from collections import Counter

from edje_qdrant.errors import ConfigError
from edje_qdrant.sources.folder import IMAGE_SUFFIXES
from edje_qdrant.sources.left_out import file_kind
from edje_qdrant.sources.place import listed_at, remote_image
from edje_qdrant.sources.protocol import ImageSource, Listing
from edje_qdrant.sources.remote import objects
from edje_qdrant.sources.uris import suffix_of

__all__ = ["PATTERN_SIGNS", "BucketSource", "OneAddress"]

#: Characters of patterns, such as `s3://bucket/2024-*/`.
PATTERN_SIGNS = "*?["


class BucketSource(ImageSource):
    """The images below an address, or those that match a pattern, in order of names.

    Hidden objects are left out. The whole list is held in memory while it is read.

    Args:
        prefix: `s3://bucket/photos/`, or a pattern such as `s3://bucket/**/*.jpg`.
    """

    def __init__(self, prefix: str) -> None:
        self.name = prefix
        fixed = next((at for at, sign in enumerate(prefix) if sign in PATTERN_SIGNS), None)
        # A folder's own name may begin that of another: photos and photos-2.
        self.scope = (prefix.rstrip("/") + "/" if fixed is None else prefix[:fixed],)
        self._of_pattern = fixed is not None

    def images(self) -> Listing:
        """List the images; what else there is is counted."""
        left_out: Counter[str] = Counter()
        for found in objects(self.name):
            if suffix_of(found.uri) in IMAGE_SUFFIXES:
                yield remote_image(found, {})
            else:
                left_out[file_kind(found.uri.rpartition("/")[2])] += 1
        self.left_out = dict(left_out)

    def count(self) -> None:
        """Return None: counting would list everything a second time."""
        return


class OneAddress(ImageSource):
    """One image at an address."""

    scope = ()

    def __init__(self, uri: str) -> None:
        self.name = uri
        if uri.endswith("/"):
            raise ConfigError(
                f"{uri} is a folder of an HTTP server, which cannot be listed; give the address of "
                "one image, or of a .jsonl or .txt file with the addresses of images"
            )

    def images(self) -> Listing:
        """List the image."""
        yield listed_at(self.name, {})
