"""A collection of captions, to find by image: text vectors in an index, texts in the payload."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.base import BaseCollection
from edje_qdrant.collection.checks import check_points
from edje_qdrant.collection.metadata import (
    check_name,
    describe,
    new_record,
    read_contract,
    resolve,
    scratch_folder,
)
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError
from edje_qdrant.files import sync_folder
from edje_qdrant.index import (
    EdgeIndex,
    QdrantIndex,
    QdrantOptions,
    QdrantSettings,
    VectorIndex,
)
from edje_qdrant.index.qdrant.settings import check_settings
from edje_qdrant.text import clean_captions
from edje_qdrant.types import Payload, Point

__all__ = ["TEXT_KEY", "CaptionCollection", "caption_ids"]

#: The payload's key for the caption itself.
TEXT_KEY = "text"

# Ids must stay the same for ever, or a rerun would add every caption again.
_NAMESPACE = uuid.UUID("c0a6b1de-4f1c-5b62-9a3f-7d5e2f80b917")


def caption_ids(texts: Sequence[str]) -> list[str]:
    """Return the ids captions have in every collection, made from their cleaned texts alone.

    Raises:
        ConfigError: One is no text, or has no word in it.
    """
    if isinstance(texts, str):
        raise ConfigError(f"texts is the text {texts!r}; give a list of captions")
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"a caption is text, not {type(text).__name__}")
    return [str(uuid.uuid5(_NAMESPACE, cleaned)) for cleaned in clean_captions(texts)]


class CaptionCollection(BaseCollection):
    """Keep captions' embeddings, texts and payloads, all written by one model.

    `location` is a folder (the embedded engine; one process at a time), `"http://..."` or
    `"https://..."` (a Qdrant server), `":memory:"` (gone when closed), or a `QdrantClient`.
    `api_key`, `prefer_grpc` and `timeout` (seconds) concern servers only. A folder or a server may
    hold collections of images and of captions side by side, under different names.

    Examples:
        >>> with CaptionCollection.create("photos", "captions", model.contract()) as collection:
        ...     collection.add(texts, model.encode_texts(texts))
        ...     collection.flush()
    """

    def __init__(
        self, index: VectorIndex, contract: TokenContract, name: str, location: str
    ) -> None:
        """Put together what is open already; use `create` or `open`."""
        super().__init__(index, name, location)
        self._contract = contract

    @classmethod
    def create(
        cls,
        location: Any,
        name: str,
        contract: TokenContract,
        *,
        qdrant: QdrantSettings | None = None,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        timeout: int = 30,
    ) -> CaptionCollection:
        """Make an empty collection; one that failed half way is not found by `open`.

        Args:
            location: Where; see the class.
            name: Letters, digits, `-` and `_`.
            contract: The model's.
            qdrant: How a server is to keep the collection; None for a folder.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            timeout: Seconds to wait for one answer of a server.

        Raises:
            ConfigError: An argument cannot be used.
            StoreError: There is such a collection already, or it cannot be written.
            EngineUnavailableError: The server cannot be reached.
        """
        where = resolve(location)
        check_name(name)
        check_settings(qdrant, folder=isinstance(where, Path))
        options = QdrantOptions(api_key=api_key, prefer_grpc=prefer_grpc, timeout=timeout)
        dim, record = contract.embedding_dim, new_record(contract, "captions")
        if not isinstance(where, Path):
            made = QdrantIndex.create(where, name, dim, record, options, qdrant)
            return cls(made, contract, name, describe(where))
        final = where / name
        with scratch_folder(final) as scratch:
            EdgeIndex.create(scratch, dim, record).close()
            # From here on there is a collection, whole; before, there is none.
            scratch.rename(final)
        sync_folder(where)
        return cls.open(where, name)

    @classmethod
    def open(
        cls,
        location: Any,
        name: str,
        *,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        timeout: int = 30,
    ) -> CaptionCollection:
        """Open a collection.

        Args:
            location: Where; see the class.
            name: As it was created.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            timeout: Seconds to wait for one answer of a server.

        Raises:
            CollectionNotFoundError: There is none; names those that are there.
            CollectionLockedError: Another process has the folder open.
            StoreError: It holds images, cannot be read, or something else wrote it.
            ConfigError: An argument cannot be used.
            EngineUnavailableError: The server cannot be reached.
        """
        where = resolve(location)
        check_name(name)
        index: VectorIndex
        if isinstance(where, Path):
            index = EdgeIndex.open(where / name)
        else:
            options = QdrantOptions(api_key=api_key, prefer_grpc=prefer_grpc, timeout=timeout)
            index = QdrantIndex.open(where, name, options)
        try:
            what = f"{name!r} at {describe(where)}"
            contract = read_contract(index.metadata, what, "captions")
        except BaseException:
            index.close()
            raise
        return cls(index, contract, name, describe(where))

    @property
    def contract(self) -> TokenContract:
        """Return the contract of the model that wrote the collection."""
        return self._contract

    def add(
        self,
        texts: Sequence[str],
        embeddings: NDArray[np.float32],
        payloads: Sequence[Payload] | None = None,
    ) -> list[str]:
        """Write captions that are not there yet; `CaptionRetriever.add` encodes them, too.

        A caption's id is made from its text as the model reads it, so `A dog!` and `a dog` are
        one caption: the first that is added stays, with its spelling and its payload.

        Args:
            texts: `n` captions.
            embeddings: `(n, d)` float32, unit length, as `EDJEModel.encode_texts` gives them.
            payloads: `n` JSON objects to return with hits; the keys `text` and `_edje` are
                reserved.

        Returns:
            The captions' ids, in order.

        Raises:
            ConfigError: A caption has no word in it, numbers, shapes or dtypes do not fit, an
                embedding is not finite, or a payload cannot be stored; nothing was written.
            StoreError: The disk or the engine refused; some may have been written.
            EngineUnavailableError: The server went away; the same holds.
        """
        ids = caption_ids(texts)
        stored = with_texts(texts, payloads)
        check_points(self._contract, ids, embeddings, stored, of="caption")
        with self.write_lock:
            there = self.existing(ids)
            rows = {ids[row]: row for row in reversed(range(len(ids)))}  # the first of each
            fresh = sorted(row for image_id, row in rows.items() if image_id not in there)
            self._index.upsert([Point(ids[r], embeddings[r], stored[r]) for r in fresh])
        return ids


def with_texts(texts: Sequence[str], payloads: Sequence[Payload] | None) -> list[dict[str, Any]]:
    """Return what is stored with each caption: its payload, if there are any, and its text.

    Raises:
        ConfigError: There are not as many payloads as captions, or one has the key `text`.
    """
    if payloads is None:
        return [{TEXT_KEY: text} for text in texts]
    if len(payloads) != len(texts):
        raise ConfigError(f"{len(payloads)} payloads for {len(texts)} captions; give one for each")
    for text, payload in zip(texts, payloads, strict=True):
        if TEXT_KEY in payload:
            raise ConfigError(
                f"the payload of {text!r} has the key {TEXT_KEY!r}, which is the caption's own; "
                "rename it"
            )
    return [{**payload, TEXT_KEY: text} for text, payload in zip(texts, payloads, strict=True)]
