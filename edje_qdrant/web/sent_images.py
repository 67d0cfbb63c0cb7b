"""Images that come with rerank and embedding requests: read, decode, encode, and keep."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
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

__all__ = ["SentImage", "SentImages", "is_address"]

T = TypeVar("T")

_AT_ONCE = 8  # images of a request that are fetched, decoded and encoded together
_MOST_REQUESTS = 8  # requests that do so at a time
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


class SentImages:
    """Encode the images of requests; encodings are cached by the content of the image files.

    Args:
        service: Decodes and encodes, within its limits.
        fetcher: Fetches addresses.
    """

    def __init__(self, service: Service, fetcher: ImageFetcher | None = None) -> None:
        settings = service.settings
        self._service = service
        self._fetcher = fetcher or ImageFetcher(
            settings.fetch_hosts, max_bytes=settings.fetch_bytes, seconds=settings.fetch_seconds
        )
        self._most_bytes = settings.image_cache_bytes
        # Used by the event loop's thread alone.
        self._kept: OrderedDict[bytes, SentImage] = OrderedDict()
        self._kept_bytes = 0
        self._model: EDJEModel | None = None
        self._slots = asyncio.Semaphore(_MOST_REQUESTS)

    async def encode(self, model: EDJEModel, images: Mapping[str, str]) -> list[SentImage]:
        """Encode images, or take their encodings from the cache.

        What was encoded is cached even if a later image cannot be read.

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
        async with self._slots:
            for start in range(0, len(places), _AT_ONCE):
                part = {place: images[place] for place in places[start : start + _AT_ONCE]}
                done += await self._encode_part(model, part)
        return done

    async def _encode_part(self, model: EDJEModel, images: Mapping[str, str]) -> list[SentImage]:
        """Encode images that fit into one batch."""
        if model is not self._model:  # the service has changed to another one
            self._model, self._kept_bytes = model, 0
            self._kept.clear()
        files = await _all(self._file(place, source) for place, source in images.items())
        found: dict[bytes, SentImage] = {}
        new: dict[bytes, tuple[str, bytes]] = {}
        for place, (key, data) in zip(images, files, strict=True):
            kept = self._kept.get(key)
            if kept is None:
                new.setdefault(key, (place, data))
            else:
                found[key] = kept
                self._kept.move_to_end(key)
        self._service.metrics.sent_images(encoded=len(new), cached=len(files) - len(new))
        if new:
            read = await _all(self._pixels(model, place, data) for place, data in new.values())
            pixels = [each for _, each in read]
            encoding = await self._service.score(lambda: encode_batch(model, pixels), index=False)
            for row, (key, (image_id, _)) in enumerate(zip(new, read, strict=True)):
                # Copies, so that an entry does not keep the arrays of the whole batch.
                made = SentImage(
                    image_id, encoding.embeddings[row].copy(), encoding.tokens[row].copy()
                )
                found[key] = made
                if model is self._model:
                    self._keep(key, made)
        return [found[key] for key, _ in files]

    async def _file(self, place: str, source: str) -> tuple[bytes, bytes]:
        """Return the SHA-256 and the bytes of an image file."""
        if is_address(source):
            data = await self._fetcher.fetch(source, place)
            return await asyncio.to_thread(_hashed, data)
        return await asyncio.to_thread(lambda: _hashed(_decode_base64(source, place)))

    async def _pixels(self, model: EDJEModel, place: str, data: bytes) -> tuple[str, Pixels]:
        """Return the id and the pixels of an image."""
        decoders = self._service.decoders
        decoded, pixels = await self._service.decode(
            lambda: read_file(model, decoders, data, place)
        )
        return decoded.image_id, pixels

    def _keep(self, key: bytes, image: SentImage) -> None:
        if image.nbytes > self._most_bytes or key in self._kept:
            return
        self._kept[key] = image
        self._kept_bytes += image.nbytes
        while self._kept_bytes > self._most_bytes:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes


def is_address(text: str) -> bool:
    """Return whether a text has the form of an address, with a scheme that is not `data`."""
    scheme = _ADDRESS.match(text)
    return scheme is not None and scheme[1].lower() != "data"


def _hashed(data: bytes) -> tuple[bytes, bytes]:
    return hashlib.sha256(data).digest(), data


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
