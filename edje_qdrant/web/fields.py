"""What the page knows of a collection's payloads: fields, values, texts to try."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from threading import Lock

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.index import Filter
from edje_qdrant.index.filters.field_paths import nested_path
from edje_qdrant.index.payload_fields import FieldSample, FilterProblem, Value

__all__ = ["Fields", "suggestions"]

# Seconds for which a sample of a collection counts, as images are added and changed.
_KEPT = 30.0

_MOST_VALUES = 50
_MOST_TEXTS = 5

# Fields that hold sentences, and fields that hold words, about what an image shows.
_SENTENCES = (
    "caption", "captions", "alt", "alt_text", "description", "sentence", "sentences", "title",
)  # fmt: skip
_WORDS = (
    "tags", "tag", "keywords", "keyword", "labels", "label", "categories", "category", "class",
    "subjects", "subject", "objects", "object",
)  # fmt: skip
_LONGEST = 80
_LETTERS = re.compile(r"[^\W\d_]{3}")
# Names of files, addresses, markup and codes describe nothing.
_NO_WORDS = re.compile(r"[\\/<>{}_|=@#]|\.\w{2,4}$|\d{3}|[^\W\d_]\d")


class Fields:
    """Samples of the collections that a service serves; threads may share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: tuple[ImageCollection, float, FieldSample] | None = None

    def sample(self, collection: ImageCollection) -> FieldSample:
        """Return the fields of a sample of the images, read at most every 30 seconds.

        Raises:
            EdjeError: The index cannot be read.
        """
        with self._lock:
            kept = self._kept
        if kept is not None and kept[0] is collection and time.monotonic() < kept[1]:
            return kept[2]
        found = collection.payload_fields()
        with self._lock:
            self._kept = collection, time.monotonic() + _KEPT, found
        return found

    def values(
        self, collection: ImageCollection, field: str
    ) -> tuple[list[tuple[Value, int]], bool]:
        """Return a field's most frequent values, and whether all images were counted.

        By a payload index where the field has one, else from the sample.

        Raises:
            ConfigError: The name is not that of a field.
            EdjeError: The index cannot be read.
        """
        path = nested_path(field, "field")
        try:
            counted = collection.index.facet(path, _MOST_VALUES)
        except ConfigError:  # strict mode
            counted = None
        if counted is not None:
            return counted, True
        sample = self.sample(collection)
        known = sample.fields.get(field)
        return ([] if known is None else known.most_common(_MOST_VALUES)), sample.complete

    def problems(self, collection: ImageCollection, filter: Filter) -> list[FilterProblem]:
        """Return why a filter finds nothing; see `filter_problems`.

        Raises:
            ConfigError: It cannot be used, or only with a payload index.
            EdjeError: The index cannot be read.
        """
        found = collection.filter_problems(filter, self.sample(collection))
        if not found:
            # What an engine refuses: strict mode without a payload index, words without one.
            collection.index.scroll(filter=filter)  # checks it, and reads nothing yet
        return found


def suggestions(sample: FieldSample) -> list[str]:
    """Return texts to search for: captions of some images, else frequent words about them.

    Empty if no field that usually holds captions or keywords holds texts that say something.
    """
    sentences = _texts(sample, _SENTENCES, 2, 12)
    short = [text for text in sentences if len(text.split()) <= 8]
    chosen = [*dict.fromkeys([*short, *sentences])][:_MOST_TEXTS]
    words = _texts(sample, _WORDS, 1, 3)
    return [*dict.fromkeys([*chosen, *words])][:_MOST_TEXTS]


def _texts(sample: FieldSample, names: Iterable[str], least: int, most: int) -> list[str]:
    """Return the most frequent texts of some fields that have a number of words."""
    found: dict[str, int] = {}
    for name in names:
        known = sample.fields.get(name)
        for (_, value), count in () if known is None else known.values.items():
            text = " ".join(value.split()) if isinstance(value, str) else ""
            if (
                least <= len(text.split()) <= most
                and len(text) <= _LONGEST
                and text.isprintable()
                and _LETTERS.search(text)
                and not _NO_WORDS.search(text)
            ):
                found[text] = found.get(text, 0) + count
    return sorted(found, key=lambda text: -found[text])
