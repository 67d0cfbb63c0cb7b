"""Text fields of a collection that exists: added, with the words of its images, and dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from edje_qdrant.checks import check_seconds
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.index import check_text_fields
from edje_qdrant.index.payload_fields import nearest_name
from edje_qdrant.maintenance.arguments import check_collections, check_flags
from edje_qdrant.maintenance.scan import PAGE, own_points

__all__ = ["TextFieldsReport", "add_text_fields", "drop_text_fields"]


@dataclass(frozen=True, slots=True)
class TextFieldsReport:
    """Report text fields that were added.

    Attributes:
        images: Number of images whose payloads were read.
        with_words: Number of them that have words in a text field.
        written: Number of them whose words were written; the others had them.
    """

    images: int
    with_words: int
    written: int


def add_text_fields(
    collection: ImageCollection,
    fields: Sequence[str],
    *,
    language: str = "english",
    progress: bool = False,
    wait: float = 300,
) -> TextFieldsReport:
    """Let words of payload fields be searched in a collection that exists.

    The words of all images are written from their stored payloads; no image is read. A run that was
    interrupted is continued by the next one; until then, hybrid searches are refused. Other fields,
    or another language, replace those that the collection has.

    Other searches continue. On a server, other writers read the fields before each write; only one
    that writes a payload in the same moment may leave older words, which `repair` corrects.

    Args:
        collection: An open collection, in a folder with the engine edge, or on a server from
            Qdrant 1.18 on.
        fields: Names of payload fields, such as `["caption", "path"]`; see
            `ImageCollection.create`.
        language: Language of the texts, or `"none"`.
        progress: Show a bar on stderr.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Raises:
        ConfigError: An argument is invalid, no image has a field while many have one of a similar
            name, or the engine or the server's version keeps no words; nothing was written.
        StoreError: The collection cannot be read or written; run it again.
        EngineUnavailableError: The connection to the server was lost; run it again.

    Example:
        >>> from edje_qdrant import EDJEModel, ImageCollection
        >>> from edje_qdrant.maintenance import add_text_fields
        >>> model = EDJEModel.from_pretrained("demo", device="cpu")
        >>> with ImageCollection.create(":memory:", "images", model.contract()) as images:
        ...     add_text_fields(images, ["caption", "path"]).images, images.text_fields
        (0, ('caption', 'path'))
    """
    check_collections(collection=collection)
    check_flags(progress=progress)
    check_seconds("wait", wait)
    chosen = check_text_fields(fields, language)
    if chosen is None:
        raise ConfigError('fields is None; name payload fields, such as ["caption", "path"]')
    with collection.patient(wait):
        collection.require_writable()
        _refuse_misspelt(collection, chosen.fields)
        known = collection.index.text_fields
        if known is None or known.complete() != chosen:
            collection.begin_words(chosen)
        images = with_words = written = 0
        total = collection.count()
        with tqdm(total=total, desc="words", unit=" images", disable=not progress) as shown:
            for page in collection.index.scroll(batch_size=PAGE):
                own = own_points(page, collection.of_other_programs(page))
                images += len(own)
                with_words += sum(bool(chosen.words_of(point.payload)) for point in own)
                written += collection.fill_words([point.id for point in own])
                shown.update(len(page))
        collection.flush()
        collection.end_words()
        return TextFieldsReport(images, with_words, written)


def drop_text_fields(collection: ImageCollection, *, wait: float = 300) -> tuple[str, ...]:
    """Drop the text fields of a collection: the words of all images are deleted.

    Payloads and other searches stay as they are; hybrid searches are refused. `add_text_fields`
    writes the words again. A run that was interrupted is continued by the next one. Programs that
    have the collection open must open it again before their next hybrid search.

    Args:
        collection: An open collection, in a folder with the engine edge, or on a server from
            Qdrant 1.18 on.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Returns:
        The names of the fields that were dropped; empty if there are none.

    Raises:
        ConfigError: An argument is invalid, the collection is being migrated, or the server is too
            old to delete words; nothing was written.
        StoreError: The collection cannot be read or written; run it again.
        EngineUnavailableError: The connection to the server was lost; run it again.

    Example:
        >>> from edje_qdrant import EDJEModel, ImageCollection
        >>> from edje_qdrant.maintenance import drop_text_fields
        >>> contract = EDJEModel.from_pretrained("demo", device="cpu").contract()
        >>> with ImageCollection.create(
        ...     ":memory:", "images", contract, text_fields=["caption"]
        ... ) as images:
        ...     drop_text_fields(images), images.text_fields
        (('caption',), ())
    """
    check_collections(collection=collection)
    check_seconds("wait", wait)
    with collection.patient(wait):
        fields = collection.drop_words()
        collection.flush()
        return fields


def _refuse_misspelt(collection: ImageCollection, fields: Sequence[str]) -> None:
    """Raise ConfigError for a field that no image has, if one of a similar name is there."""
    sample = collection.payload_fields()
    for field in fields:
        similar = None if field in sample.fields else nearest_name(field, sample.fields)
        if similar is not None and similar not in fields:
            raise ConfigError(
                f"no image that was looked at has the field {field!r}; the most similar name is "
                f"{similar!r}: give that, or set {field!r} of some images first"
            )
