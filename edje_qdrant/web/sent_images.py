"""Images that come with rerank and embedding requests: read, decode, encode, and keep."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ImageReadError
from edje_qdrant.ingest.encode import encode_batch
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.pixels import Pixels, read_file
from edje_qdrant.types import ImageEncoding
from edje_qdrant.web.errors import RequestError
from edje_qdrant.web.image_fetch import ImageFetcher
from edje_qdrant.web.service import Service

__all__ = ["EncodingCache", "SentImage", "SentImages", "is_address"]

T = TypeVar("T")

_AT_ONCE = 8  # images of a request that are fetched, decoded and encoded together
_MOST_REQUESTS = 8  # requests that do so at a time
_MOST_FILES = 8  # image files in memory at a time
_ENTRY_OVERHEAD = 1024  # upper bound of a cache entry's bytes beside its arrays
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):", re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class SentImage:
    """An image of a request, encoded.

    Attributes:
        image_id: The id that it would have in the collection.
        embedding: `(d,)` float32, unit length.
        tokens: `(m, d_text)` float16.
    """

    image_id: str
    embedding: NDArray[np.float32]
    tokens: NDArray[np.float16]

    @property
    def encoding(self) -> ImageEncoding:
        """Return the encodings of one image."""
        return ImageEncoding(self.embedding[None], self.tokens[None])

    @property
    def nbytes(self) -> int:
        """Return the bytes that the image takes in the cache."""
        return self.embedding.nbytes + self.tokens.nbytes + _ENTRY_OVERHEAD


class EncodingCache:
    """Cache of encodings by the content of image files, least recently used first; thread-safe.

    It holds the encodings of one model: with another one, it starts empty.

    Args:
        max_bytes: Memory limit.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._model: EDJEModel | None = None
        self._images: OrderedDict[bytes, SentImage] = OrderedDict()
        self._bytes = 0

    def get(self, model: EDJEModel, key: bytes) -> SentImage | None:
        """Return the encodings of a file by a model; None if they are not cached."""
        with self._lock:
            if model is not self._model or key not in self._images:
                return None
            self._images.move_to_end(key)
            return self._images[key]

    def put(self, model: EDJEModel, images: Mapping[bytes, SentImage]) -> None:
        """Cache encodings by a model."""
        with self._lock:
            if model is not self._model:
                self._model, self._bytes = model, 0
                self._images.clear()
            for key, image in images.items():
                if image.nbytes > self._max_bytes or key in self._images:
                    continue
                self._images[key] = image
                self._bytes += image.nbytes
                while self._bytes > self._max_bytes:
                    self._bytes -= self._images.popitem(last=False)[1].nbytes


class SentImages:
    """Encode the images of requests; encodings are cached by the content of the image files.

    Args:
        service: Decodes and encodes, within its limits.
    """

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self._service = service
        self._fetcher = ImageFetcher(
            settings.fetch_hosts, max_bytes=settings.fetch_bytes, seconds=settings.fetch_seconds
        )
        self._cache = EncodingCache(settings.image_cache_bytes)
        self._requests = asyncio.Semaphore(_MOST_REQUESTS)
        self._files = asyncio.Semaphore(_MOST_FILES)

    async def encode(self, model: EDJEModel, images: Mapping[str, str]) -> list[SentImage]:
        """Encode images, or take their encodings from the cache.

        What was encoded is cached even if a later image cannot be read, or time runs out.

        Args:
            model: The model of the collection.
            images: Place of each in the request -> address, data URI or base64.

        Raises:
            RequestError: There are too many images, or an address is not allowed.
            ImageReadError: An image cannot be fetched or decoded; names its place.
            BusyError: Too many jobs wait.
        """
        most = self._service.settings.max_images
        if len(images) > most:
            message = (
                f"a request may hold {most} images that are not of the collection, and this one "
                f"holds {len(images)}; send fewer, or ingest them and send their ids"
            )
            raise RequestError(400, "LimitExceeded", message)
        places = [*images]
        done: list[SentImage] = []
        if not places:
            return done
        async with self._requests:
            for start in range(0, len(places), _AT_ONCE):
                part = {place: images[place] for place in places[start : start + _AT_ONCE]}
                done += await self._encode_part(model, part)
        return done

    async def _encode_part(self, model: EDJEModel, images: Mapping[str, str]) -> list[SentImage]:
        """Encode images that fit into one batch."""
        found: dict[bytes, SentImage] = {}
        new: dict[bytes, tuple[str, Pixels] | None] = {}  # None while it is being decoded
        keys = await _all(
            self._read(model, place, source, found, new) for place, source in images.items()
        )
        self._service.metrics.sent_images(encoded=len(new), cached=len(keys) - len(new))
        decoded = {key: each for key, each in new.items() if each is not None}
        if decoded:
            # On the search thread, so that what is encoded is kept even if the request has ended.
            encode = partial(self._encode_now, model, decoded)
            found |= await self._service.score(encode, index=False)
        return [found[key] for key in keys]

    def _encode_now(
        self, model: EDJEModel, decoded: Mapping[bytes, tuple[str, Pixels]]
    ) -> dict[bytes, SentImage]:
        """Encode decoded images in one batch, and cache them."""
        encoding = encode_batch(model, [pixels for _, pixels in decoded.values()])
        # Copies, so that an entry does not keep the arrays of the whole batch.
        made = {
            key: SentImage(image_id, encoding.embeddings[row].copy(), encoding.tokens[row].copy())
            for row, (key, (image_id, _)) in enumerate(decoded.items())
        }
        self._cache.put(model, made)
        return made

    async def _read(
        self,
        model: EDJEModel,
        place: str,
        source: str,
        found: dict[bytes, SentImage],
        new: dict[bytes, tuple[str, Pixels] | None],
    ) -> bytes:
        """Read an image, and decode it unless it is cached or in the request already.

        Returns:
            The SHA-256 of its file; the image is in `found`, or its id and pixels are in `new`.
        """
        async with self._files:
            if is_address(source):
                data = await self._fetcher.fetch(source, place)
            else:
                data = await asyncio.to_thread(_decode_base64, source, place)
            key = await asyncio.to_thread(lambda: hashlib.sha256(data).digest())
            kept = found.get(key) or self._cache.get(model, key)
            if kept is not None:
                found[key] = kept
            elif key not in new:
                new[key] = None
                decoders = self._service.decoders
                decoded, pixels = await self._service.decode(
                    lambda: read_file(model, decoders, data, place)
                )
                new[key] = decoded.image_id, pixels
            return key


def is_address(text: str) -> bool:
    """Return whether a text has the form of an address, with a scheme that is not `data`."""
    scheme = _ADDRESS.match(text)
    return scheme is not None and scheme[1].lower() != "data"


def _decode_base64(source: str, place: str) -> bytes:
    """Return the bytes of a data URI or of base64, with or without padding and line breaks.

    Raises:
        ImageReadError: It is neither.
    """
    text = source
    if source[:5].lower() == "data:":
        head, comma, text = source.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            reason = "its data URI is not of the form data:image/png;base64,..."
            raise ImageReadError(place, reason)
    text = "".join(text.split()).rstrip("=").translate(_URL_SAFE)
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        reason = "it is no base64, no data URI and no address of http or https"
        raise ImageReadError(place, reason) from error
    if not data:
        raise ImageReadError(place, "it is empty")
    return data


_URL_SAFE = str.maketrans("-_", "+/")


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all; after a failure, cancel the rest."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return [*await asyncio.gather(*tasks)]
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
