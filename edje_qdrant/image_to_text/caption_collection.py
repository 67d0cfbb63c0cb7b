"""Caption collection: text embeddings in an index, texts in the payload, searched by image."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.checks import check_kind, check_list, check_strings
from edje_qdrant.collection.base import BaseCollection
from edje_qdrant.collection.checks import check_points
from edje_qdrant.collection.metadata import (
    check_name,
    describe,
    new_record,
    publish,
    read_contract,
    resolve,
    scratch_folder,
)
from edje_qdrant.collection.opening import open_index
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import CollectionExistsError, CollectionNotFoundError, ConfigError
from edje_qdrant.index import (
    QdrantOptions,
    QdrantSettings,
    VectorIndex,
    create_embedded,
    create_on_server,
)
from edje_qdrant.index.qdrant.settings import check_settings
from edje_qdrant.text import clean_captions
from edje_qdrant.types import Payload, Point

__all__ = ["TEXT_KEY", "CaptionCollection", "caption_ids"]

#: Payload key of the caption's text.
TEXT_KEY = "text"

# Must never change, or a rerun would add every caption again.
_NAMESPACE = uuid.UUID("c0a6b1de-4f1c-5b62-9a3f-7d5e2f80b917")


def caption_ids(texts: Sequence[str]) -> list[str]:
    """Return the ids of captions, computed from their cleaned texts only.

    Raises:
        ConfigError: A caption is not a string, or contains no word.
    """
    check_strings("texts", texts)
    return [str(uuid.uuid5(_NAMESPACE, cleaned)) for cleaned in clean_captions(texts)]


class CaptionCollection(BaseCollection):
    """Store embeddings, texts and payloads of captions, all written by one model.

    `location` is a folder (embedded engine; one process at a time), `"http://..."` or
    `"https://..."` (Qdrant server), `":memory:"` (deleted when closed), or a `QdrantClient`.
    `api_key`, `prefer_grpc`, `grpc_port` and `timeout` (seconds) apply to servers only. A folder or
    a server can contain collections of images and of captions, under different names.

    Candidates of `nearest` have the caption's id as `image_id`, and its text in the payload.
    """

    holds = "captions"

    def __init__(
        self, index: VectorIndex, contract: TokenContract, name: str, location: str
    ) -> None:
        """Take an open index; use `create` or `open` instead."""
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
        grpc_port: int | None = None,
        timeout: int = 30,
    ) -> CaptionCollection:
        """Create an empty collection; `open` does not find one whose creation failed.

        Args:
            location: Folder, address or client; see the class.
            name: Letters, digits, `-` and `_`.
            contract: Of the model that writes.
            qdrant: Settings of a server's collection; None for a folder.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            grpc_port: Port of gRPC; has to be given if the address names a port other than 6333.
            timeout: Seconds to wait for each response of a server, and for all responses of one
                search together, with retries and pauses.

        Raises:
            ConfigError: An argument is invalid.
            CollectionExistsError: The collection exists already.
            StoreError: The collection cannot be written.
            EngineUnavailableError: The server cannot be reached.
        """
        where = resolve(location)
        check_name(name)
        check_kind("contract", contract, TokenContract, "a TokenContract, such as model.contract()")
        check_settings(qdrant, folder=isinstance(where, Path))
        options = QdrantOptions(api_key, prefer_grpc, grpc_port, timeout)
        dim, record = contract.embedding_dim, new_record(contract, "captions")
        if not isinstance(where, Path):
            made = create_on_server(where, name, dim, record, options, qdrant)
            return cls(made, contract, name, describe(where))
        final = where / name
        with scratch_folder(final) as scratch:
            create_embedded(scratch, dim, record).close()
            publish(scratch, final)
        return cls.open(where, name)

    @classmethod
    def open(
        cls,
        location: Any,
        name: str,
        *,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        grpc_port: int | None = None,
        timeout: int = 30,
    ) -> CaptionCollection:
        """Open a collection.

        Args:
            location: Folder, address or client; see the class.
            name: The collection's name.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            grpc_port: Port of gRPC; has to be given if the address names a port other than 6333.
            timeout: Seconds to wait for each response of a server, and for all responses of one
                search together, with retries and pauses.

        Raises:
            CollectionNotFoundError: There is no such collection; lists those that exist.
            CollectionLockedError: Another process has the folder open.
            StoreError: The collection contains images, cannot be read, or another program wrote it.
            ConfigError: An argument is invalid.
            EngineUnavailableError: The server cannot be reached.
        """
        where = resolve(location)
        options = QdrantOptions(api_key, prefer_grpc, grpc_port, timeout)
        index = open_index(where, name, options)
        try:
            what = f"{name!r} at {describe(where)}"
            contract = read_contract(index.metadata, what, "captions")
        except BaseException:
            index.close()
            raise
        return cls(index, contract, name, describe(where))

    @classmethod
    def open_or_create(
        cls,
        location: Any,
        name: str,
        contract: TokenContract,
        *,
        qdrant: QdrantSettings | None = None,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        grpc_port: int | None = None,
        timeout: int = 30,
    ) -> CaptionCollection:
        """Open a collection of this model, or create it if there is none.

        Of several processes that do so at once on a server, one creates it and the others open it.

        Args:
            location: Folder, address or client; see the class.
            name: Letters, digits, `-` and `_`.
            contract: Of the model that writes.
            qdrant: Settings of a collection that is created on a server; they do not change one
                that exists.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            grpc_port: Port of gRPC; has to be given if the address names a port other than 6333.
            timeout: Seconds to wait for each response of a server.

        Raises:
            ContractMismatchError: Another model wrote the collection; names each field that
                differs, with both values.
            ConfigError: An argument is invalid.
            CollectionLockedError: The folder is open already, here or in another process.
            StoreError: The collection contains images, or cannot be read or written.
            EngineUnavailableError: The server cannot be reached.

        Example:
            >>> import tempfile
            >>> from edje_qdrant import CaptionCollection, EDJEModel
            >>> contract = EDJEModel.from_pretrained("demo", device="cpu").contract()
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     for _ in range(2):
            ...         with CaptionCollection.open_or_create(folder, "texts", contract) as texts:
            ...             len(texts)
            0
            0
        """
        server: dict[str, Any] = {
            "api_key": api_key,
            "prefer_grpc": prefer_grpc,
            "grpc_port": grpc_port,
            "timeout": timeout,
        }
        check_kind("contract", contract, TokenContract, "a TokenContract, such as model.contract()")
        check_settings(qdrant, folder=isinstance(resolve(location), Path))
        try:
            opened = cls.open(location, name, **server)
        except CollectionNotFoundError:
            try:
                return cls.create(location, name, contract, qdrant=qdrant, **server)
            except CollectionExistsError:  # another process was quicker
                opened = cls.open(location, name, **server)
        try:
            opened.require(contract)
        except BaseException:
            opened.close()
            raise
        return opened

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
        """Write captions that the collection does not contain; `CaptionRetriever.add` encodes too.

        A caption's id is computed from its cleaned text, so `A dog!` and `a dog` are one caption:
        the first one added is kept, with its spelling and its payload. On a server before Qdrant
        1.17, one that another process adds in the milliseconds between the look-up and the write is
        replaced.

        Args:
            texts: `n` captions.
            embeddings: `(n, d)` float32, unit length, from `EDJEModel.encode_texts`.
            payloads: `n` JSON objects to return with hits; the keys `text` and `_edje` are
                reserved.

        Returns:
            The captions' ids, in order.

        Raises:
            ConfigError: A caption contains no word, numbers, shapes or dtypes do not fit, an
                embedding is not finite, or a payload cannot be stored; nothing was written.
            StoreError: The disk or the engine refused; some captions may have been written.
            EngineUnavailableError: The connection to the server was lost; the same holds.
        """
        ids = caption_ids(texts)
        stored = with_texts(texts, payloads)
        check_points(self._contract, ids, embeddings, stored, of="caption")
        with self.write_lock:
            existing = self.existing(ids)
            rows = {ids[row]: row for row in reversed(range(len(ids)))}  # the first of each
            fresh = sorted(row for image_id, row in rows.items() if image_id not in existing)
            self._index.insert([Point(ids[r], embeddings[r], stored[r]) for r in fresh])
        return ids


def with_texts(texts: Sequence[str], payloads: Sequence[Payload] | None) -> list[dict[str, Any]]:
    """Return the payload to store with each caption: its text, and its own payload if any.

    Raises:
        ConfigError: Numbers of payloads and captions differ, or a payload has the key `text`.
    """
    if payloads is None:
        return [{TEXT_KEY: text} for text in texts]
    check_list("payloads", payloads)
    if len(payloads) != len(texts):
        raise ConfigError(f"{len(payloads)} payloads for {len(texts)} captions; give one for each")
    for payload in payloads:
        check_kind("a payload", payload, Mapping, "a dict")
    for text, payload in zip(texts, payloads, strict=True):
        if TEXT_KEY in payload:
            raise ConfigError(
                f"the payload of {text!r} has the key {TEXT_KEY!r}, which is reserved for the "
                "caption; rename it"
            )
    return [{**payload, TEXT_KEY: text} for text, payload in zip(texts, payloads, strict=True)]
