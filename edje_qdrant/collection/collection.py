"""Image collection: vectors and payloads in an index, tokens in a store, one contract."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.checks import check_kind, check_list
from edje_qdrant.collection.base import BaseCollection
from edje_qdrant.collection.checks import (
    check_points,
    check_reserved,
    check_tokens,
    fitted_codec,
    named_codec,
)
from edje_qdrant.collection.likeness import Likeness
from edje_qdrant.collection.metadata import (
    UNKNOWN_CODECS,
    CollectionRecord,
    TokenPlace,
    absolute,
    resolve,
)
from edje_qdrant.collection.moved import Migration, Moved
from edje_qdrant.collection.opening import (
    Origin,
    Parts,
    create_parts,
    open_index,
    open_parts,
    open_side,
)
from edje_qdrant.collection.references import (
    another_model,
    in_order,
    is_ours,
    reference_of,
    repeated,
    run_of,
    signed,
    user_payload,
)
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import (
    CollectionExistsError,
    CollectionNotFoundError,
    ConfigError,
    ContractMismatchError,
    EdjeError,
    ImagesDeletedError,
    TokensCorruptError,
    TokensNotFoundError,
)
from edje_qdrant.files import os_errors_as_store_errors
from edje_qdrant.index import (
    TOKENS_KEY,
    ByWords,
    Engine,
    Filter,
    PayloadKind,
    QdrantOptions,
    QdrantSettings,
    Strategy,
    TextFields,
    VectorIndex,
    check_indexes,
    check_text_fields,
)
from edje_qdrant.index.engines import check_engine
from edje_qdrant.index.folder import gone_folder, read_metadata
from edje_qdrant.index.qdrant.settings import check_settings
from edje_qdrant.index.words import WordVector
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.payload_store import PayloadTokenStore
from edje_qdrant.tokens.protocol import (
    EmptyCodes,
    StoredCodes,
    TokenReference,
    TokenStore,
    decoded,
    empty_codes,
)
from edje_qdrant.types import Candidate, Candidates, ImageEncoding, Payload, Point

__all__ = ["ImageCollection", "user_payload"]


class ImageCollection(BaseCollection):
    """Store embeddings, payloads and tokens of images, all written by one model.

    Only this class knows the order of writes: tokens are written and flushed before the points
    that refer to them, and points are deleted before their tokens. A crash can leave tokens that
    no point refers to, never a point without tokens.

    `location` is a folder (embedded engine; one process at a time), `"http://..."` or
    `"https://..."` (Qdrant server), `":memory:"` (deleted when closed), or a `QdrantClient`.
    `api_key`, `prefer_grpc`, `grpc_port` and `timeout` (seconds) apply to servers only.

    Example:
        >>> from uuid import uuid4
        >>> from PIL import Image, ImageDraw
        >>> from edje_qdrant import EDJEModel, ImageCollection
        >>> model = EDJEModel.from_pretrained("demo", device="cpu")
        >>> images = [Image.new("RGB", (256, 256), "lightgrey") for _ in range(2)]
        >>> for image, colour in zip(images, ["red", "blue"]):
        ...     ImageDraw.Draw(image).ellipse((80, 80, 176, 176), fill=colour)
        >>> with ImageCollection.create(":memory:", "images", model.contract()) as collection:
        ...     collection.add(
        ...         [str(uuid4()) for _ in images],
        ...         model.encode_images(images),
        ...         [{"colour": "red"}, {"colour": "blue"}],
        ...     )
        ...     (found,) = collection.nearest(model.encode_texts(["a red circle"]), 2)
        ...     [candidate.payload["colour"] for candidate in found]
        ...     collection.tokens(found).shape
        ['red', 'blue']
        (2, 16, 128)
    """

    holds = "images"

    def __init__(self, parts: Parts, name: str) -> None:
        """Take open parts; use `create` or `open` instead."""
        super().__init__(parts.index, name, parts.location)
        self._store, self._record, self._origin = parts.store, parts.record, parts.origin
        self._codec_lock = RLock()
        self._run = secrets.token_hex(4)

    @classmethod
    def create(
        cls,
        location: Any,
        name: str,
        contract: TokenContract,
        *,
        tokens: TokenPlace | None = None,
        codec: str | Codec = "float16",
        tokens_folder: str | Path | None = None,
        payload_indexes: Mapping[str, PayloadKind] | None = None,
        text_fields: Sequence[str] | None = None,
        text_language: str = "english",
        engine: Engine | None = None,
        qdrant: QdrantSettings | None = None,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        grpc_port: int | None = None,
        timeout: int = 30,
        compress_reads: bool = False,
    ) -> ImageCollection:
        """Create an empty collection; `open` does not find one whose creation failed.

        Args:
            location: Folder, address or client; see the class.
            name: Letters, digits, `-` and `_`.
            contract: Of the model that writes; its codec is replaced by `codec`.
            tokens: `"file"` (default for a folder) or `"payload"` (default elsewhere).
            codec: Encodes tokens as bytes: a name, a codec fitted to tokens, or the path of a
                `.safetensors` file that `edje-qdrant fit-codec` wrote.
            tokens_folder: Folder for side files; each collection uses a subfolder with its name.
                Required for `"file"` on a server; the default is inside the collection's folder.
            payload_indexes: Field -> kind of the payload indexes to create, such as
                `{"album": "keyword"}`; see `create_payload_index`.
            text_fields: Payload fields whose words `search(hybrid=True)` finds, such as
                `["caption", "path"]`; `maintenance.add_text_fields` adds them later. Not for
                faiss.
            text_language: Language whose endings are cut off, so that "beach" finds "beaches", and
                whose most frequent words are left out; `"none"` does neither.
            engine: Vector engine of a folder: `"edge"` (default) or `"faiss"`; `open` detects it.
                None for a server.
            qdrant: Settings of a server's collection: shards, replicas, quantization, storage on
                disk. None for a folder.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            grpc_port: Port of gRPC; has to be given if the address names a port other than 6333.
            timeout: Seconds to wait for each response of a server, and for all responses of one
                search together, with retries and pauses.
            compress_reads: Let a server compress what it sends; for networks below 100 MB/s.

        Raises:
            ConfigError: An argument is invalid.
            CollectionExistsError: The collection exists already.
            StoreError: The collection cannot be written.
            EngineUnavailableError: The server cannot be reached.
            MissingExtraError: faiss is requested and not installed.
        """
        options = QdrantOptions(
            api_key, prefer_grpc, grpc_port, timeout, compress_reads=compress_reads
        )
        indexes = check_indexes(payload_indexes or {})
        words = check_text_fields(text_fields, text_language)
        parts = create_parts(
            location, name, contract, codec, tokens, tokens_folder, options, engine, qdrant, words
        )
        created = cls(parts, name)
        try:
            created.create_payload_indexes(indexes)
        except BaseException:
            created.close()
            raise
        return created

    @classmethod
    def open(
        cls,
        location: Any,
        name: str,
        *,
        tokens_folder: str | Path | None = None,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        grpc_port: int | None = None,
        timeout: int = 30,
        compress_reads: bool = False,
        for_repair: bool = False,
    ) -> ImageCollection:
        """Open a collection.

        Args:
            location: Folder, address or client; see the class.
            name: The collection's name.
            tokens_folder: New folder of the side files, if they were created outside the
                collection's folder and have moved since.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            grpc_port: Port of gRPC; has to be given if the address names a port other than 6333.
            timeout: Seconds to wait for each response of a server, and for all responses of one
                search together, with retries and pauses.
            compress_reads: Let a server compress what it sends; for networks below 100 MB/s.
            for_repair: Open a damaged collection too, to verify and repair it: a lost manifest is
                rebuilt, and side files are checked only when they are read.

        Raises:
            CollectionNotFoundError: There is no such collection; lists those that exist.
            CollectionLockedError: Another process has the folder open.
            ContractMismatchError: Index and side file were written by different models.
            TokensNotFoundError: The side file is missing.
            TokensCorruptError: The side file is damaged, or belongs to another collection.
            StoreError: The collection cannot be read, or another program wrote it.
            ConfigError: An argument is invalid.
            EngineUnavailableError: The server cannot be reached.
        """
        options = QdrantOptions(
            api_key, prefer_grpc, grpc_port, timeout, compress_reads=compress_reads
        )
        return cls(open_parts(location, name, tokens_folder, options, for_repair=for_repair), name)

    @classmethod
    def open_or_create(
        cls,
        location: Any,
        name: str,
        contract: TokenContract | Callable[[], TokenContract],
        *,
        tokens: TokenPlace | None = None,
        codec: str | Codec | None = None,
        fit: Callable[[Codec], Codec] | None = None,
        tokens_folder: str | Path | None = None,
        payload_indexes: Mapping[str, PayloadKind] | None = None,
        text_fields: Sequence[str] | None = None,
        text_language: str | None = None,
        engine: Engine | None = None,
        qdrant: QdrantSettings | None = None,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        grpc_port: int | None = None,
        timeout: int = 30,
        compress_reads: bool = False,
    ) -> ImageCollection:
        """Open a collection of this model, or create it if there is none.

        Of several processes that do so at once on a server, one creates it and the others open it.

        Args:
            location: Folder, address or client; see the class.
            name: Letters, digits, `-` and `_`.
            contract: Of the model that writes. A function that returns it is called only to create
                the collection, so that no model need be loaded before it is known to be missing;
                the model of a collection that exists is then not checked here.
            tokens: `"file"` or `"payload"`; by default as in `create`, or as they are.
            codec: As in `create`; by default `"float16"`, or the collection's own.
            fit: Fits the codec of a new collection to tokens, if it needs that:
                `lambda codec: fit_codec_to_source("pictures", model, codec.name)`.
            tokens_folder: As in `create` and `open`.
            payload_indexes: As in `create`; those that are missing are created.
            text_fields: As in `create`; a collection that exists must have the same ones, in any
                order. None for those that it has.
            text_language: As in `create`; by default `"english"`, or the collection's own.
            engine: As in `create`; by default `"edge"`, or the collection's own.
            qdrant: Settings of a collection that is created on a server; they do not change one
                that exists.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            grpc_port: Port of gRPC; has to be given if the address names a port other than 6333.
            timeout: Seconds to wait for each response of a server.
            compress_reads: Let a server compress what it sends; for networks below 100 MB/s.

        Raises:
            ContractMismatchError: Another model wrote the collection; names each field that
                differs, with both values.
            ConfigError: An argument is invalid, or the collection has another codec or engine, or
                keeps its tokens elsewhere.
            CollectionLockedError: The folder is open already, here or in another process.
            StoreError: The collection cannot be read or written.
            EngineUnavailableError: The server cannot be reached.
            MissingExtraError: faiss is requested and not installed.

        Example:
            >>> import tempfile
            >>> from edje_qdrant import EDJEModel, ImageCollection
            >>> contract = EDJEModel.from_pretrained("demo", device="cpu").contract()
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     for _ in range(2):
            ...         with ImageCollection.open_or_create(folder, "images", contract) as images:
            ...             images.codec.name, len(images)
            ('float16', 0)
            ('float16', 0)
        """
        server: dict[str, Any] = {
            "api_key": api_key,
            "prefer_grpc": prefer_grpc,
            "grpc_port": grpc_port,
            "timeout": timeout,
            "compress_reads": compress_reads,
        }
        folder = isinstance(resolve(location), Path)
        check_engine(engine, folder=folder)  # before the contract is asked for
        check_settings(qdrant, folder=folder)
        if fit is not None and not callable(fit):
            raise ConfigError(f"fit is a {type(fit).__name__}; give a function that fits a codec")
        indexes = check_indexes(payload_indexes or {})
        language = "english" if text_language is None else text_language
        words = check_text_fields(text_fields, language)
        try:
            opened = cls.open(location, name, tokens_folder=tokens_folder, **server)
        except CollectionNotFoundError:
            made = contract() if callable(contract) else contract
            chosen: str | Codec = "float16" if codec is None else codec
            if fit is not None:
                chosen = named_codec(chosen, made) if isinstance(chosen, str) else chosen
                if isinstance(chosen, Codec) and not chosen.fitted:
                    chosen = fit(chosen)
            try:
                return cls.create(
                    location, name, made, tokens=tokens, codec=chosen,
                    tokens_folder=tokens_folder, payload_indexes=indexes, engine=engine,
                    qdrant=qdrant, text_fields=text_fields, text_language=language, **server,
                )  # fmt: skip
            except CollectionExistsError:  # another process was quicker
                opened = cls.open(location, name, tokens_folder=tokens_folder, **server)
        try:
            opened._require_kind(None if callable(contract) else contract, codec, engine, tokens)
            opened._require_text_fields(words, text_language)
            opened.create_payload_indexes(indexes)
        except BaseException:
            opened.close()
            raise
        return opened

    def _is_own(self, point_id: str, payload: Payload) -> bool:
        return is_ours(point_id, payload)

    def _require_kind(
        self,
        contract: TokenContract | None,
        codec: str | Codec | None,
        engine: str | None,
        tokens: str | None,
    ) -> None:
        """Check that the collection is as asked for; None for what does not matter.

        Raises:
            ContractMismatchError: Another model wrote it.
            ConfigError: It has another codec or engine, or keeps its tokens elsewhere.
        """
        if contract is not None:
            self.require(contract)
        if engine not in (None, self._index.engine):
            raise ConfigError(
                f"{self._what()} is kept by {self._index.engine}, not {engine}; leave the engine "
                "out, or copy it to a new one: `edje-qdrant copy --engine`"
            )
        if tokens not in (None, self.token_place):
            raise ConfigError(
                f'{self._what()} keeps its tokens in "{self.token_place}", not "{tokens}"; leave '
                "tokens out, or copy it to a new one that is created so"
            )
        if codec in (None, self.contract.codec):
            return
        asked = named_codec(codec, self.contract) if isinstance(codec, str) else codec
        if not isinstance(asked, Codec):
            asked = fitted_codec(self.contract, codec)  # says what is wrong
        if asked.key != (own := self.codec).key:
            # By name, where codebooks do not tell them apart.
            here, there = (own.key, asked.key) if own.name == asked.name else (own.name, asked.name)
            raise ConfigError(
                f"{self._what()} stores tokens as {here}, not {there}; leave the codec out, or "
                "change it with `edje-qdrant transcode`"
            )

    def _require_text_fields(self, asked: TextFields | None, language: str | None) -> None:
        """Check that the collection has the text fields asked for; None for any.

        Raises:
            ConfigError: It has none, or others, or they are in another language.
        """
        if asked is None:
            return
        own = self._index.text_fields
        if (
            own is not None
            and {*own.fields} == {*asked.fields}
            and language in (None, own.language)
        ):
            return
        has = (
            "has no text fields"
            if own is None
            else f"has the text fields {', '.join(own.fields)} in the language {own.language}"
        )
        wanted = ", ".join(asked.fields) + ("" if language is None else f" in {language}")
        raise ConfigError(
            f"{self._what()} {has}, not {wanted}; leave them out, or change them with "
            f"`edje-qdrant text-fields {','.join(asked.fields)}`"
        )

    @property
    def text_fields(self) -> tuple[str, ...]:
        """Return the payload fields whose words `search(hybrid=True)` finds; empty for none."""
        fields = self._index.text_fields
        return () if fields is None else fields.fields

    @property
    def text_language(self) -> str:
        """Return the language of the text fields; `"none"` without text fields."""
        fields = self._index.text_fields
        return "none" if fields is None else fields.language

    def begin_words(self, fields: TextFields) -> None:
        """Record other text fields, whose words `set_words` then writes; see `add_text_fields`.

        Raises:
            ConfigError: The engine, or a server of this version, keeps no words.
            StoreError: The collection cannot be written.
            EngineUnavailableError: The server cannot be reached.
        """
        self.require_writable()
        with self.write_lock, self._codec_lock:
            self._record = self._record_now()
            self._require_no_migration("add them")
            self._index.begin_words(replace(fields, filled=False))
            self._record = replace(self._record, text_fields=self._index.text_fields)

    def drop_words(self) -> tuple[str, ...]:
        """Forget the text fields and delete the words of all images; see `drop_text_fields`.

        Returns:
            The names of the fields; empty if there are none.

        Raises:
            ConfigError: A server of this version cannot delete words.
            StoreError: The collection cannot be written.
            EngineUnavailableError: The server cannot be reached.
        """
        self.require_writable()
        with self.write_lock, self._codec_lock:
            self._record = self._record_now()
            self._require_no_migration("drop them")
            fields = self.text_fields
            self._index.check_drops_words()
            if fields:
                # First, so that no program writes or searches words that are being deleted.
                self._record = replace(self._record, text_fields=None)
                self._index.set_metadata(self._record.as_metadata())
            self._index.drop_words()  # also those that an interrupted call left
            return fields

    def _require_no_migration(self, action: str) -> None:
        if self._record.migration is not None:
            raise ConfigError(
                f"{self._what()} is being migrated to another model, and the text fields of "
                f"both must be the same; finish the migration or roll it back, then {action}: "
                "`edje-qdrant migrate`"
            )

    def fill_words(self, image_ids: Sequence[str]) -> int:
        """Write the words of images whose stored words are not those of their payloads.

        Args:
            image_ids: Ids; unknown ones are ignored.

        Returns:
            The number of images that were written.

        Raises:
            StoreError: The collection cannot be read or written.
            EngineUnavailableError: The server cannot be reached.
        """
        with self.write_lock:
            changed = self.other_words(self._index.retrieve(image_ids, tokens=False))
            self._index.set_words(changed)
            return len(changed)

    def other_words(self, payloads: Mapping[str, Payload]) -> dict[str, WordVector]:
        """Return id -> words of the images whose stored words are not those of their payloads.

        Args:
            payloads: Id -> payload, as it is stored.

        Raises:
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        fields = self._index.text_fields
        if fields is None or not payloads:
            return {}
        stored = self._index.words([*payloads])
        due = {image_id: fields.words_of(payload) for image_id, payload in payloads.items()}
        return {
            image_id: words
            for image_id, words in due.items()
            if not words.is_like(stored.get(image_id))
        }

    def end_words(self) -> None:
        """Record that every image has its words; hybrid searches are refused before."""
        with self.write_lock, self._codec_lock:
            record, fields = self._record_now(), self._index.text_fields
            if fields is not None and not fields.filled:
                self._record = replace(record, text_fields=fields.complete())
                self._index.set_metadata(self._record.as_metadata())

    @property
    def contract(self) -> TokenContract:
        """Return the contract of the model that wrote the collection, codec included."""
        return self._record.contract

    @property
    def codec(self) -> Codec:
        """Return the codec that encodes new tokens."""
        return self._store.codec

    @property
    def codec_history(self) -> tuple[str, ...]:
        """Return the names of the codecs that tokens were stored with before, oldest first.

        `("pq16",)` with the codec float16: tokens were decoded from pq16, and what that dropped is
        gone. `"unknown"` comes first if versions that recorded no codecs wrote the collection.
        """
        history = self._record.codec_history
        return (UNKNOWN_CODECS,) if history is None else history

    @property
    def store(self) -> TokenStore:
        """Return the token store, for maintenance."""
        return self._store

    @cached_property
    def likeness(self) -> Likeness:
        """Return the scale on which embeddings of this collection are compared."""
        return Likeness(self._index)

    @property
    def identity(self) -> str:
        """Return a text that identifies the collection and its model, for cursors."""
        return f"{self.resolved_name} {self.contract.adapter_hash[:12]}"

    @property
    def token_place(self) -> TokenPlace:
        """Return `"file"` if tokens are in side files, `"payload"` if they are in the points."""
        return "payload" if self._store.in_payload else "file"

    def nearest(
        self,
        embeddings: NDArray[np.float32],
        num_candidates: int,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
        words: ByWords | None = None,
    ) -> list[Candidates]:
        """Find the points nearest to each of `(q, d)` embeddings, best first.

        Points that another program wrote to a server's collection are left out.

        Args:
            embeddings: `(q, d)` float32, by the model that wrote the collection.
            num_candidates: Maximum number of candidates for each embedding.
            filter: Search only points whose payload matches; None or `{}` for all.
            timeout: Seconds after which a request to a server is not repeated.
            words: Words to search for beside the embeddings; the order is then that of the ranks in
                both searches, while scores are cosines.

        Returns:
            One list of candidates for each embedding.

        Raises:
            ConfigError: The embeddings do not fit the contract, `num_candidates` is below 1, or the
                filter cannot be used.
            ContractMismatchError: On a server: another model wrote points that were found, or has
                replaced the collection.
            StoreError: The engine failed.
            EngineUnavailableError: The server cannot be reached.
        """
        with self._explained():
            found = self._index.nearest(
                embeddings,
                num_candidates,
                filter=filter,
                timeout=timeout,
                keep=is_ours,
                words=words,
            )
        return self._own(found)

    async def nearest_async(
        self,
        embeddings: NDArray[np.float32],
        num_candidates: int,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
        words: ByWords | None = None,
    ) -> list[Candidates]:
        """Find the same as `nearest` without blocking the event loop; raises the same errors."""
        with self._explained():
            found = await self._index.nearest_async(
                embeddings,
                num_candidates,
                filter=filter,
                timeout=timeout,
                keep=is_ours,
                words=words,
            )
        return self._own(found)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say that the collection was replaced, where the width of its vectors is another one."""
        try:
            yield
        except ConfigError as error:
            if self._index.shared and "dimension" in str(error):
                self.require_unchanged()
            raise

    def _own(self, found: list[Candidates]) -> list[Candidates]:
        """Return candidates of a server, once it is certain that this model wrote them.

        The tokens of a candidate are checked too, but not every search reads them. A folder is
        locked while it is open, so its points are checked with their tokens alone.
        """
        if self._index.shared:
            if not any(found):
                self.require_unchanged()  # another side has the images after a migration
            for candidates in found:
                self._require_own(
                    [each.image_id for each in candidates],
                    [reference_of(each.payload) for each in candidates],
                )
        return found

    @property
    def origin(self) -> Origin:
        """Return how the collection was opened, for migrations."""
        return self._origin

    @property
    def migration(self) -> Migration | None:
        """Return the migration to another model that is under way, as it was when last read."""
        return self._record.migration

    def migration_now(self) -> Migration | None:
        """Read which migration is under way.

        Raises:
            ContractMismatchError: A collection of another model has replaced this one.
            StoreError: The collection cannot be read.
        """
        with self._codec_lock:
            self._record = self._record_now()
            return self._record.migration

    def set_migration(self, migration: Migration | None) -> None:
        """Record which migration is under way; None for no longer any.

        Raises:
            ContractMismatchError: A collection of another model has replaced this one.
            StoreError: The collection cannot be written.
        """
        self.require_writable()
        with self.write_lock, self._codec_lock:
            record = replace(self._record_now(), migration=migration)
            self._index.set_metadata(record.as_metadata())
            self._record = record

    def move_to(self, moved: Moved) -> None:
        """Replace this side by another one, atomically: it is what the name stands for from now on.

        This object is closed, and raises ContractMismatchError from then on.

        Args:
            moved: With an empty `before`, which is filled in here.

        Raises:
            ContractMismatchError: Another side has replaced this one already.
            StoreError: The collection cannot be written.
        """
        with self.write_lock, self._codec_lock:
            before = replace(self._record_now(), migration=None)
            metadata = replace(moved, before=before.as_metadata()).as_metadata()
            self._index.set_metadata(metadata)

            def replaced() -> EdjeError:
                try:
                    self._require_same_model(metadata)
                except ContractMismatchError as error:
                    return error
                raise AssertionError("the two contracts are of one model")

            self.close(replaced)

    def create_side(self, side: str, contract: TokenContract, codec: Codec) -> ImageCollection:
        """Create an empty side for another model, stored as this collection is.

        Args:
            side: Name of the side, which does not exist.
            contract: Of the other model.
            codec: Encodes its tokens.

        Raises:
            CollectionExistsError: There is such a side.
            StoreError: It cannot be created.
            EngineUnavailableError: The server cannot be reached.
        """
        origin, record = self._origin, self._record
        where, name = origin.place_of(side)
        self.remove_side_tokens(side)  # of a killed run
        in_folder = isinstance(where, Path)
        parts = create_parts(
            where, name, contract, codec, record.tokens, self._tokens_around(), origin.options,
            cast("Engine", self._index.engine) if in_folder else None,
            text_fields=None if (words := self._index.text_fields) is None else words.complete(),
            like=None if in_folder else self.resolved_name, side_of=origin.front,
        )  # fmt: skip
        created = type(self)(parts, side)
        try:
            created.create_payload_indexes(self.payload_indexes())
        except BaseException:
            created.close()
            raise
        return created

    def open_side(self, side: str) -> ImageCollection:
        """Open a side, whether or not it is the one that is searched.

        Raises:
            CollectionNotFoundError: There is no such side.
            CollectionLockedError: Another process has its folder open.
            StoreError: It cannot be read, or another side has replaced it.
            EngineUnavailableError: The server cannot be reached.
        """
        return type(self)(open_side(self._origin, side), side)

    def side_metadata(self, side: str) -> Mapping[str, Any]:
        """Read the metadata of a side, also if its folder is locked; raises as `open_side`."""
        where, name = self._origin.place_of(side)
        if isinstance(where, Path):
            return read_metadata(where / name)[1]
        index = self.open_side_index(side)
        index.close()
        return index.metadata

    def open_side_index(self, side: str) -> VectorIndex:
        """Open the index of a side, also of one that another side has replaced.

        Raises:
            CollectionNotFoundError: There is no such side.
            CollectionLockedError: Another process has its folder open.
            StoreError: It cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        return open_index(*self._origin.place_of(side), self._origin.options)

    def forget_sides_between(self) -> None:
        """Take note that the name leads to the open side directly now."""
        sides = self._origin.sides
        self._origin = replace(self._origin, sides=(sides[0], sides[-1]))

    def remove_side(self, side: str) -> None:
        """Delete a side with all that it holds; one that does not exist is ignored.

        Raises:
            CollectionLockedError: Another process has its folder open.
            StoreError: It cannot be deleted.
            EngineUnavailableError: The server cannot be reached.
        """
        with suppress(CollectionNotFoundError):
            self.open_side_index(side).remove()
        where, name = self._origin.place_of(side)
        if isinstance(where, Path):
            shutil.rmtree(gone_folder(where / name), ignore_errors=True)  # of a killed run
        self.remove_side_tokens(side)

    def remove_side_tokens(self, side: str) -> None:
        """Delete a side's tokens where they are in side files; its points must be gone.

        Raises:
            StoreError: They cannot be deleted.
        """
        if self._record.tokens == "payload":
            return
        where, name = self._origin.place_of(side)
        around = self._tokens_around()
        if around is None and not isinstance(where, Path):
            raise AssertionError("a server's side files are in a folder of their own")
        folder = where / name / "tokens" if around is None else around / side
        with os_errors_as_store_errors("delete the side files in", folder):
            if folder.is_dir():
                shutil.rmtree(folder)

    def _tokens_around(self) -> Path | None:
        """Return the folder that holds the folders of side files; None where a side has its own."""
        chosen = self._origin.tokens_folder or self._record.tokens_folder
        return None if chosen is None else absolute(chosen)

    def _record_now(self) -> CollectionRecord:
        """Return the record with what other processes have written about a migration.

        Raises:
            ContractMismatchError: A collection of another model has replaced this one.
        """
        self.reload()
        self.require_unchanged()
        found = CollectionRecord.read(self._index.metadata, self._what())
        return replace(self._record, migration=found.migration)

    def reload(self) -> None:
        """Read which codecs and text fields other processes have set since.

        Codecs are read for tokens in the payload; side files contain the key of their codec.

        Raises:
            ContractMismatchError: A collection of another model has replaced this one.
            StoreError: The collection cannot be read.
        """
        with self._codec_lock:
            if self._store.in_payload or self._index.shared:
                self.require_unchanged()
            self._record = replace(self._record, text_fields=self._index.text_fields)
            if self._store.in_payload:
                record = CollectionRecord.read(self._index.metadata, self._what())
                self._store = PayloadTokenStore(record.contract, record.codebooks)
                self._record = record

    def ids(self, filter: Filter | None = None) -> Iterator[str]:
        """Yield the id of every image, or of those whose payload matches, in order of id.

        They are read in pages, so images added or deleted during the iteration may or may not be
        among them; `[*collection.ids()]` is a list. Points that other programs wrote are left out.

        Args:
            filter: As in `nearest`.

        Raises:
            ConfigError: The filter cannot be used.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        shared = self._index.shared  # a folder holds no points of other programs
        pages = self._index.scroll(filter=filter, payload=shared)
        return (
            point.id
            for page in pages
            for point in page
            if not shared or is_ours(point.id, point.payload)
        )

    def payloads(self, image_ids: Iterable[str]) -> list[dict[str, Any]]:
        """Read the payloads of images, in order; ids may repeat.

        Args:
            image_ids: `n` ids: a list, or what `ids` returns.

        Returns:
            `n` payloads: `path` and the user's fields.

        Raises:
            TokensNotFoundError: Some images are not in the collection; names the ids.
            ConfigError: An id is invalid.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        if not isinstance(image_ids, Iterator):
            check_list("image_ids", image_ids)
        wanted = [*image_ids]
        distinct = [*dict.fromkeys(wanted)]
        found = self._index.retrieve(distinct, tokens=False)
        return [user_payload(payload) for payload in in_order(wanted, found)]

    def recommend(
        self,
        liked: Sequence[str],
        disliked: Sequence[str],
        num_candidates: int,
        *,
        filter: Filter | None = None,
        strategy: Strategy = "average_vector",
    ) -> Candidates:
        """Find images similar to some images and dissimilar to others, without these images.

        Args:
            liked: Ids of similar images; may be empty with `best_score`.
            disliked: Ids of dissimilar images.
            num_candidates: Maximum number of images to find.
            filter: Search only images whose payload matches; None or `{}` for all.
            strategy: How examples are combined, `average_vector` or `best_score`.

        Raises:
            ConfigError: An id is unknown, or an argument is invalid.
            StoreError: The engine failed.
            EngineUnavailableError: The server cannot be reached.
        """
        found = self._index.recommend(
            liked, disliked, num_candidates, filter=filter, strategy=strategy, keep=is_ours
        )
        return self._own([found])[0]

    def of_other_programs(self, points: Iterable[Point]) -> list[Point]:
        """Return those of the points, read with their payloads, that other programs wrote.

        There are none in a folder: a point that has lost its token reference there is damaged.
        """
        if not self._index.shared:
            return []
        return [point for point in points if not is_ours(point.id, point.payload)]

    def delete_of_other_programs(self, point_ids: Sequence[str]) -> None:
        """Delete points by id, also by integers, which only other programs use as ids."""
        with self.write_lock:
            self._index.delete_of_others(point_ids)

    def payload_indexes(self) -> dict[str, str]:
        """Return field -> kind of every payload index; empty if the engine has none."""
        return self._index.payload_indexes()

    def tokens(self, candidates: Sequence[Candidate]) -> NDArray[np.float16]:
        """Read the candidates' tokens, `(n, m, d_text)` float16, in order; see `codes`."""
        check_list("candidates", candidates)
        contract = self.contract
        shape = (len(candidates), contract.num_tokens, contract.token_dim)
        return decoded(self.codes(candidates), shape)

    def codes(
        self, candidates: Sequence[Candidate], *, empty: EmptyCodes = empty_codes
    ) -> list[StoredCodes]:
        """Read the candidates' tokens as they are stored, one part for each codec.

        Candidates of several queries may be read in one call; images may repeat.

        Args:
            candidates: From the first stage.
            empty: Allocates the arrays that codes are copied to, in pinned memory for example.

        Raises:
            ImagesDeletedError: Some candidates were deleted since they were found; names the ids.
            TokensNotFoundError: Some candidates have no tokens; names the ids.
            TokensCorruptError: Stored bytes differ from those written; names the ids.
        """
        check_list("candidates", candidates)
        for candidate in candidates:
            check_kind("a candidate", candidate, Candidate, "what nearest returns")
        found = {candidate.image_id: candidate.payload for candidate in candidates}
        parts = self._codes(found, empty)
        if len(found) == len(candidates):
            return parts
        return repeated(parts, [*found], [candidate.image_id for candidate in candidates])

    def encodings(self, image_ids: Sequence[str]) -> ImageEncoding:
        """Read embeddings and tokens of images, in order; ids may repeat.

        Raises:
            TokensNotFoundError: Some images are not in the collection; names the ids.
            TokensCorruptError: Stored bytes differ from those written; names the ids.
        """
        check_list("image_ids", image_ids)
        payloads = in_order(image_ids, self._index.retrieve(image_ids, tokens=False))
        vectors = in_order(image_ids, self._index.vectors(image_ids))
        embeddings = np.empty((len(image_ids), self.contract.embedding_dim), np.float32)
        for row, vector in enumerate(vectors):
            embeddings[row] = vector
        rows = zip(image_ids, payloads, strict=True)
        return ImageEncoding(
            embeddings,
            self.tokens([Candidate(image_id, 0, 0, payload) for image_id, payload in rows]),
        )

    def bytes_per_image(self) -> int:
        """Return the bytes that one image's tokens take as stored, without the vector."""
        return self._store.nbytes_per_image()

    def close(self, because: Callable[[], EdjeError] | None = None) -> None:
        """Flush, and close files and connections; a second call does nothing.

        Args:
            because: Returns the error that later calls raise; by default that it is closed.
        """
        try:
            self._index.close(because)
        finally:
            self._store.close()

    def add(
        self, image_ids: Sequence[str], encoding: ImageEncoding, payloads: Sequence[Payload]
    ) -> None:
        """Write `n` images, replacing those with the same id: tokens first, then points.

        Args:
            image_ids: `n` UUID strings.
            encoding: Embeddings and tokens of the images.
            payloads: `n` JSON objects to return with hits; the key `_edje` is reserved. Dates and
                times of Python are stored as RFC 3339 text, in UTC.

        Raises:
            ConfigError: Numbers, shapes or dtypes do not fit the contract, an embedding or a token
                is not finite, or an id or a payload cannot be stored; nothing was written.
            ContractMismatchError: On a server, another model's collection has replaced this one.
            CollectionLockedError: Another process is writing tokens.
            StoreError: The disk or the engine refused; points that were written have their tokens.
            EngineUnavailableError: The connection to the server was lost; the same holds.
        """
        self._check_images(image_ids, encoding, payloads)
        if image_ids:
            with self.write_lock:
                self._check_before_tokens()
                references = self._store.put(image_ids, encoding.tokens)
                self._write(image_ids, encoding.embeddings, payloads, references)

    def add_new(
        self, image_ids: Sequence[str], encoding: ImageEncoding, payloads: Sequence[Payload]
    ) -> set[str]:
        """Write those of `n` images that are not stored yet; return the ids of those written.

        Of several processes that add an image to a server's collection at the same time, one gets
        its id returned. The ids are looked up before the write; a server from Qdrant 1.17 on
        then writes only what is not there; and the points are read back: each says, by random
        digits that an open collection draws (`_edje.run`), who wrote it. An older server replaces
        a point that was written in the milliseconds since the lookup, and two processes may then
        both get its id.

        Args:
            image_ids: `n` UUID strings.
            encoding: Embeddings and tokens of the images.
            payloads: `n` JSON objects; the key `_edje` is reserved.

        Raises:
            ConfigError: As `add`.
            ContractMismatchError: As `add`.
            StoreError: As `add`.
            EngineUnavailableError: As `add`.
        """
        self._check_images(image_ids, encoding, payloads)
        with self.write_lock:
            there = self.existing(image_ids)
            rows = [row for row, image_id in enumerate(image_ids) if image_id not in there]
            if not rows:
                return set()
            new = [image_ids[row] for row in rows]
            self._check_before_tokens()
            references = self._store.put(new, encoding.tokens[rows])
            return self._insert(
                new, encoding.embeddings[rows], [payloads[row] for row in rows], references
            )

    def add_codes(
        self,
        image_ids: Sequence[str],
        embeddings: NDArray[np.float32],
        codes: NDArray[np.uint8],
        payloads: Sequence[Payload],
    ) -> set[str]:
        """Write images whose tokens are already encoded by this collection's codec.

        Images that are stored already stay as they are; see `add_new`.

        Args:
            image_ids: `n` UUID strings.
            embeddings: `(n, d)` float32, unit length.
            codes: `(n, codec.nbytes)` uint8.
            payloads: `n` JSON objects; the key `_edje` is reserved.

        Returns:
            The ids of the images written.

        Raises:
            ConfigError: The codes do not fit the codec; for other reasons see `add`.
        """
        if codes.shape != (len(image_ids), self.codec.nbytes) or codes.dtype != np.uint8:
            raise ConfigError(
                f"codes must be uint8 of shape {(len(image_ids), self.codec.nbytes)} for "
                f"{self.codec.name}, not {codes.dtype} of shape {codes.shape}"
            )
        check_points(self.contract, image_ids, embeddings, payloads)
        self.require_writable()
        with self.write_lock:
            there = self.existing(image_ids)
            rows = [row for row, image_id in enumerate(image_ids) if image_id not in there]
            if not rows:
                return set()
            self._check_before_tokens()
            references = self._store.put_codes(codes[rows])
            return self._insert(
                [image_ids[row] for row in rows],
                embeddings[rows],
                [payloads[row] for row in rows],
                references,
            )

    def replace_encodings(self, image_ids: Sequence[str], encoding: ImageEncoding) -> set[str]:
        """Write embeddings and tokens of images that are still stored; their payloads stay.

        An image that was deleted stays deleted. A server before Qdrant 1.17 writes one again that
        another process deletes in the milliseconds between the look-up and the write, and every
        server writes the payload that was read in that look-up.

        Args:
            image_ids: `n` UUID strings.
            encoding: Embeddings and tokens of the images.

        Returns:
            The ids of the images that are stored now, with these encodings.

        Raises:
            ConfigError: As `add`.
            ContractMismatchError: As `add`.
            CollectionLockedError: As `add`.
            StoreError: As `add`.
            EngineUnavailableError: As `add`.
        """
        self._check_images(image_ids, encoding, [{} for _ in image_ids])
        with self.write_lock:
            if self._index.shared:
                self.require_unchanged()
            stored = self._index.retrieve(image_ids, tokens=False)
            rows = [row for row, image_id in enumerate(image_ids) if image_id in stored]
            if not rows:
                return set()
            kept = [image_ids[row] for row in rows]
            references = self._store.put(kept, encoding.tokens[rows])
            payloads = [user_payload(stored[image_id]) for image_id in kept]
            points = self._points(kept, encoding.embeddings[rows], payloads, references)
            self._store.flush()
            self._index.update(points)
            return self.existing(kept)

    def update_payload(self, payloads: Mapping[str, Payload]) -> None:
        """Set fields of images' payloads; other fields, vectors and tokens stay.

        Args:
            payloads: Id -> fields to set, each replaced as a whole. Unknown ids are ignored.

        Raises:
            ConfigError: A field is reserved or cannot be stored, or an id is invalid.
            StoreError: The engine refused.
            EngineUnavailableError: The connection to the server was lost; earlier images may have
                been changed.
        """
        check_reserved(payloads)
        with self.write_lock:
            self._index.set_payload(payloads)

    def set_codec(self, codec: str | Codec) -> None:
        """Encode tokens with another codec from now on; stored tokens stay as they are.

        `maintenance.transcode` converts stored tokens too.

        Args:
            codec: A fitted codec, or the name of one that needs no fitting.

        Raises:
            ConfigError: The codec is unknown, not fitted, or does not fit the contract.
            CollectionLockedError: Another process is writing tokens.
            StoreError: The codec cannot be stored.
        """
        codec = fitted_codec(self.contract, codec)
        self.require_writable()
        with self.write_lock, self._codec_lock:
            # Read again, or codebooks that another process added would be lost.
            record = self._record_now().with_codec(codec)
            before = self.contract
            if before.codec_key != codec.key and self.count():
                record = replace(record, codec_history=(*self.codec_history, before.codec))
            # Stored before it is used, so that readers of new points find the codebook.
            store = self._store.with_codec(codec)
            self._index.set_metadata(record.as_metadata())
            self._store, self._record = store, record

    def add_codec_history(self, codecs: Sequence[str]) -> None:
        """Record the codecs that tokens which are copied to here were stored with before.

        Args:
            codecs: `codec_history` of the collection that they come from.

        Raises:
            StoreError: The collection cannot be written.
        """
        self.require_writable()
        with self.write_lock, self._codec_lock:
            now = self._record_now()
            there = self.codec_history
            new = [codec for codec in codecs if codec not in there]
            if not new:
                return
            # UNKNOWN_CODECS stays first.
            both = (*codecs, *(codec for codec in there if codec not in codecs))
            history = both if there[:1] != (UNKNOWN_CODECS,) else (*there, *new)
            record = replace(now, codec_history=history)
            self._index.set_metadata(record.as_metadata())
            self._record = record

    def flush(self) -> None:
        """Make everything added so far survive a killed process; call it at checkpoints."""
        self._store.flush()
        self._index.flush()

    def create_payload_index(self, field: str, kind: PayloadKind) -> None:
        """Index a payload field, so that filters on it need not read every payload.

        Args:
            field: Path of the field: `album`, `camera.year`.
            kind: Kind of its values: keyword, integer, float, bool, datetime, geo, text or uuid.

        Raises:
            ConfigError: The field cannot be indexed, or the kind does not exist.
            StoreError: The engine failed.
            EngineUnavailableError: The server cannot be reached.
        """
        with self.write_lock:
            self._index.create_payload_index(field, kind)

    def create_payload_indexes(self, indexes: Mapping[str, str]) -> None:
        """Create those payload indexes, given as field -> kind, that the collection does not have.

        Raises:
            ConfigError: As `create_payload_index`.
            StoreError: As `create_payload_index`.
            EngineUnavailableError: As `create_payload_index`.
        """
        wanted = check_indexes(cast("Mapping[str, PayloadKind]", indexes))
        there = self.payload_indexes() if wanted else {}
        missing = {field: kind for field, kind in wanted.items() if there.get(field) != kind}
        for field, kind in missing.items():
            self.create_payload_index(field, kind)
        if missing:
            self.flush()

    def delete_matching(self, filter: Filter) -> None:
        """Delete the images whose payload matches, as `delete` does.

        Args:
            filter: `{"album": "2024", "year": [2023, 2024]}`: every field must equal its value, or
                one of the values in its list.

        Raises:
            ConfigError: The filter is empty or invalid.
        """
        with self.write_lock:
            self._index.delete_matching(filter)

    def _check_before_tokens(self) -> None:
        """Check that the collection is the one opened, before tokens go to side files."""
        if self._index.shared and not self._store.in_payload:
            self.require_writes_allowed()

    def _write(
        self,
        image_ids: Sequence[str],
        embeddings: NDArray[np.float32],
        payloads: Sequence[Payload],
        references: Sequence[TokenReference],
    ) -> None:
        self._store.flush()
        self._index.upsert(self._points(image_ids, embeddings, payloads, references))

    def _insert(
        self,
        image_ids: Sequence[str],
        embeddings: NDArray[np.float32],
        payloads: Sequence[Payload],
        references: Sequence[TokenReference],
    ) -> set[str]:
        """Write images that are not stored; return the ids of those that this object wrote."""
        run = self._run if self._index.shared else None
        points = self._points(image_ids, embeddings, payloads, references, run)
        self._store.flush()
        self._index.insert(points)
        if not self._index.shared:
            return {*image_ids}
        written = self._index.retrieve(image_ids, tokens=False)
        return {i for i, payload in written.items() if run_of(payload) == self._run}

    def _points(
        self,
        image_ids: Sequence[str],
        embeddings: NDArray[np.float32],
        payloads: Sequence[Payload],
        references: Sequence[TokenReference],
        run: str | None = None,
    ) -> list[Point]:
        rows = zip(image_ids, embeddings, payloads, references, strict=True)
        contract = self.contract
        return [Point(i, e, {**p, TOKENS_KEY: signed(r, contract, run)}) for i, e, p, r in rows]

    def _check_images(
        self, image_ids: Sequence[str], encoding: ImageEncoding, payloads: Sequence[Payload]
    ) -> None:
        """Check images before their tokens are written; raises as `add`."""
        check_kind("encoding", encoding, ImageEncoding, "what model.encode_images returns")
        check_points(self.contract, image_ids, encoding.embeddings, payloads)
        check_tokens(self.contract, image_ids, encoding.tokens)
        self.require_writable()

    def _codes(self, found: Mapping[str, Payload], empty: EmptyCodes) -> list[StoredCodes]:
        """Read the tokens of the images with these payloads, in order."""
        image_ids = [*found]
        try:
            if self._store.in_payload:
                found = self._index.retrieve(image_ids)
                gone = [image_id for image_id in image_ids if image_id not in found]
                if gone:  # or on its way to the copy that was asked
                    found = {**found, **self._index.retrieve(gone)}
            ordered = in_order(image_ids, found, ImagesDeletedError)
            references = [reference_of(payload) for payload in ordered]
            self._require_own(image_ids, references)
            return self._store.codes(image_ids, references, empty)
        except (TokensNotFoundError, TokensCorruptError) as error:
            if isinstance(error, ImagesDeletedError):
                raise
            # They may have been compacted or transcoded since they were found: read the current
            # references and codecs.
            self.reload()
            again = in_order(image_ids, self._index.retrieve(image_ids), ImagesDeletedError)
            references = [reference_of(payload) for payload in again]
            self._require_own(image_ids, references)
            return self._store.codes(image_ids, references)

    def require_own(self, payloads: Mapping[str, Payload]) -> None:
        """Check that this collection's model wrote images.

        Args:
            payloads: Id -> payload, as the index returns it.

        Raises:
            ContractMismatchError: Another model wrote some, or has replaced the collection.
        """
        self._require_own([*payloads], [reference_of(each) for each in payloads.values()])

    def _require_own(self, image_ids: Sequence[str], references: Sequence[TokenReference]) -> None:
        """Check that this collection's model wrote the points.

        Raises:
            ContractMismatchError: Another model wrote some, or has replaced the collection.
        """
        error = another_model(self.contract, image_ids, references, self._what())
        if error is not None:
            if self._index.shared:
                self.require_unchanged()  # its message is about the whole collection
            raise error
