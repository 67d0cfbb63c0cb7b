"""Cache of image tokens on a device, within a memory budget."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import in_order, reference_of
from edje_qdrant.errors import ConfigError
from edje_qdrant.rerank.joined_candidates import JoinedCandidates
from edje_qdrant.rerank.lru_rows import Key, LruRows
from edje_qdrant.rerank.token_feed import to_device
from edje_qdrant.rerank.token_loader import DeviceCodes, TokenReader
from edje_qdrant.tokens.checksum import checksums
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.file_store import files_of
from edje_qdrant.types import Candidate, Candidates, Payload

__all__ = ["CacheStats", "DeviceTokenCache", "Kept", "token_keys"]

#: Keep tokens as they are stored, decoded at every use; or decoded.
Kept = Literal["codes", "tokens"]

_log = logging.getLogger(__name__)

# Images read at a time by `preload`.
_PAGE = 512

# Share of a GPU's free memory that an automatic cache may take, and images for which it has room
# beside those of the collection: a share of them, and a few.
_FREE_SHARE = 1 / 3
_MORE_SHARE, _MORE = 1 / 4, 1000

# Number of fetches after which a codec that none of them used loses its share of the budget.
_UNUSED = 256


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Statistics of a cache.

    Attributes:
        hits: Number of requested images that were in the cache.
        misses: Number of requested images that had to be read.
        images: Number of images in the cache now.
        bytes: Allocated bytes, used or free; never more than the budget.
    """

    hits: int
    misses: int
    images: int
    bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Rows of one codec, codes or tokens, and the requested images that they belong to.

    Attributes:
        codec: Decodes them.
        rows: `(k, width)`.
        places: `(p,)` places among the requested images, `p >= k`.
        which: `(p,)` row of each place; None if row `i` is of place `i`.
    """

    codec: Codec
    rows: Tensor
    places: NDArray[np.intp]
    which: NDArray[np.intp] | None


class DeviceTokenCache:
    """Keep the tokens of recently used images in the memory of a GPU or CPU.

    An image is identified by its id and by what its point's payload says about its tokens (side
    file, record, codec, checksum), and tokens are kept only if they match that checksum. So tokens
    of a replaced image are never returned for the new one. Tokens of replaced, deleted or moved
    images are never requested again; they are replaced as the least recently used ones.

    Several threads, retrievers and collections can share a cache.

    Args:
        budget_bytes: Maximum size of the cache. The memory is allocated at the first use; on the
            CPU, it is occupied as it is filled.
        device: `"cuda"` or `"cpu"`. With a model on a GPU, a cache on the CPU saves reading and
            checking; a cache on the GPU also saves the copy.
        keep: `"codes"` holds more images if the codec is small; `"tokens"` saves decoding them.

    Raises:
        ConfigError: The budget is below 1, there is no such device, or `keep` is unknown.

    Examples:
        >>> cache = DeviceTokenCache(1 << 20)
        >>> cache.stats
        CacheStats(hits=0, misses=0, images=0, bytes=0)

        Fill it, and search with it:

        ```python
        cache.preload(collection)
        retriever = TwoStageRetriever(collection, model, token_cache=cache)
        ```
    """

    def __init__(
        self, budget_bytes: int, *, device: torch.device | str = "cpu", keep: Kept = "codes"
    ) -> None:
        if isinstance(budget_bytes, bool) or not isinstance(budget_bytes, int) or budget_bytes < 1:
            raise ConfigError(
                f"budget_bytes is {budget_bytes!r}; give a whole number of bytes, 1 or more"
            )
        if keep not in get_args(Kept):
            raise ConfigError(f'keep is {keep!r}; give "codes" or "tokens"')
        try:
            self._device = torch.empty(0, device=device).device
        except Exception as error:  # the type depends on torch's build
            reason = str(error).splitlines()[0]
            raise ConfigError(f"no cache can be kept on the device {device}: {reason}") from error
        self._budget, self._keep = budget_bytes, keep
        self._optional = False  # whether a search works without it if the memory is gone
        self._lock = Lock()
        self._rows: dict[str, LruRows] = {}
        self._readers: dict[torch.device, TokenReader] = {}
        self._hits = self._misses = self._fetches = 0
        self._written: torch.cuda.Event | None = None

    @classmethod
    def automatic(
        cls, collection: ImageCollection, device: torch.device
    ) -> DeviceTokenCache | None:
        """Return a cache for a whole collection, or for what a third of a GPU's free memory holds.

        Tokens are kept decoded if all of them fit, or else as they are stored. If the memory is
        taken at the first use, a warning is logged and nothing is kept.

        Returns:
            None on a CPU, and if not even one image fits.
        """
        if device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(device)
        budget, keep = _share(collection, int(_FREE_SHARE * free))
        if keep is None:
            return None
        cache = cls(budget, device=device, keep=keep)
        cache._optional = True
        return cache

    @property
    def device(self) -> torch.device:
        """Return the device of the cache."""
        return self._device

    @property
    def stats(self) -> CacheStats:
        """Return the number of hits and misses so far, and the current size."""
        with self._lock:
            rows = [*self._rows.values()]
            images, nbytes = sum(map(len, rows)), sum(r.nbytes for r in rows)
            return CacheStats(self._hits, self._misses, images, nbytes)

    def require(self, collection: ImageCollection) -> None:
        """Check that at least one image of a collection fits into the budget.

        Raises:
            ConfigError: The budget is too small.
        """
        width = self._width(collection.codec)
        if width > self._budget:
            raise ConfigError(
                f"budget_bytes is {self._budget:,}, and one image of the collection "
                f"{collection.name!r} takes {width:,}; give more"
            )

    def fetch(
        self,
        collection: ImageCollection,
        candidates: Sequence[Candidate],
        *,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Return the tokens of candidates, in order; read and keep those that are not cached.

        Args:
            collection: The collection of the candidates.
            candidates: `n` candidates; the same image can occur several times.
            device: Device of the returned tokens; the cache's own by default.

        Returns:
            `(n, m, d_text)` float16 on that device, a copy.

        Raises:
            TokensNotFoundError: Tokens are missing; names the ids.
            TokensCorruptError: Tokens are damaged; names the ids.
            ConfigError: The memory cannot be allocated on the device.
        """
        target = self._device if device is None else torch.device(device)
        keys = _known_keys(candidates) or token_keys(collection, _stored(candidates))
        parts, absent = self._cached(keys, target)
        if len(absent):
            parts += self._read(collection, candidates, keys, absent)
        contract = collection.contract
        shape = (len(keys), contract.num_tokens, contract.token_dim)
        return self._decoded(parts, shape, target)

    def preload(self, collection: ImageCollection, image_ids: Sequence[str] | None = None) -> int:
        """Read images into the cache until it is full; they replace what it contained.

        Args:
            collection: The collection of the images.
            image_ids: The images, most important first; all by default, in the order of their ids.

        Returns:
            The number of images that are in the cache now.

        Raises:
            TokensNotFoundError: An image or its tokens are missing; names the ids.
            TokensCorruptError: Tokens are damaged; names the ids.
            ConfigError: The budget is too small for an image, or cannot be allocated.
        """
        self.require(collection)
        if isinstance(image_ids, str):
            raise ConfigError(f"image_ids is the text {image_ids!r}; give a list of ids")
        room = self._budget // self._width(collection.codec)
        loaded = 0
        pages = _pages(collection, None if image_ids is None else dict.fromkeys(image_ids))
        while loaded < room and (page := list(islice(pages, min(_PAGE, room - loaded)))):
            keys = token_keys(collection, _stored(page))
            if len(absent := self._absent(keys)):
                self._read(collection, page, keys, absent)
            loaded += len(page)
        return loaded

    def clear(self) -> None:
        """Remove all tokens and free the memory."""
        with self._lock:
            self._rows.clear()

    def _cached(
        self, keys: Sequence[Key], target: torch.device
    ) -> tuple[list[_Part], NDArray[np.intp]]:
        """Return copies of the rows that are in the cache, and the places of the other keys."""
        parts: list[_Part] = []
        present = np.zeros(len(keys), bool)
        # Tokens that need no decoding and no copy are gathered as often as they are requested.
        repeat = self._keep == "tokens" and self._device == target
        with self._lock, self._ordered_on_device():
            self._fetches += 1
            for rows in self._rows.values():
                slots = rows.find(keys)  # (n,)
                places = np.flatnonzero(slots >= 0)
                if not len(places):
                    continue
                slots, which = slots[places], None
                distinct, inverse = np.unique(slots, return_inverse=True)
                self._hits += len(distinct)
                if len(distinct) < len(slots) and not repeat:
                    slots, which = distinct, inverse
                own = rows.take(slots, pinned=target.type == "cuda")
                parts.append(_Part(rows.codec, own, places, which))
                present[places] = True
                rows.last_used = self._fetches
            absent = np.flatnonzero(~present)
            self._misses += len({keys[at] for at in absent.tolist()})
        return parts, absent

    def _absent(self, keys: Sequence[Key]) -> NDArray[np.intp]:
        """Return the places of keys that are not in the cache; mark the others as recently used."""
        absent = np.ones(len(keys), bool)
        with self._lock:
            for rows in self._rows.values():
                slots = rows.find(keys)
                rows.use(slots[slots >= 0])
                absent &= slots < 0
        return np.flatnonzero(absent)

    def _read(
        self,
        collection: ImageCollection,
        candidates: Sequence[Candidate],
        keys: Sequence[Key],
        absent: NDArray[np.intp],
    ) -> list[_Part]:
        """Read the absent ones of the candidates, and keep those that match their keys."""
        parts: list[_Part] = []
        first: dict[Key, int] = {}  # distinct key -> its first place
        for at in absent.tolist():
            first.setdefault(keys[at], at)
        row_of = {key: row for row, key in enumerate(first)}
        asked = np.array([row_of[keys[at]] for at in absent.tolist()])  # (len(absent),)
        reader = self._reader(self._device)
        wanted = [candidates[at] for at in first.values()]
        for part in reader.read(collection, wanted):
            rows = part.codes
            if self._keep == "tokens":
                rows = reader.decode(part.codec, part.codes).flatten(1)  # (k, m * d_text)
            row_in_part = np.full(len(first), -1)
            row_in_part[part.rows] = np.arange(len(part.rows))
            which = row_in_part[asked]  # (len(absent),)
            own = np.flatnonzero(which >= 0)
            none_repeats = len(own) == len(part.rows)  # then they are in order
            parts.append(_Part(part.codec, rows, absent[own], None if none_repeats else which[own]))
            self._keep_rows(part, rows, [*first], wanted)
        return parts

    def _keep_rows(
        self, part: DeviceCodes, rows: Tensor, keys: Sequence[Key], wanted: Sequence[Candidate]
    ) -> None:
        """Keep rows of images with these keys, unless they were replaced since they were found."""
        asked = part.rows.tolist()
        same = [
            row
            for row, checksum in enumerate(checksums(part.stored))
            if reference_of(wanted[asked[row]].payload).get("checksum") == checksum
        ]
        if not same:
            return
        if len(same) < len(rows):
            rows = rows.index_select(0, to_device(torch.tensor(same), self._device))
        with self._lock, self._ordered_on_device():
            try:
                kept = self._rows_of(part.codec, rows.shape[1])
            except ConfigError:
                if not self._optional:
                    raise
                _log.warning("%s has no memory for a token cache; tokens are read", self._device)
                self._budget = 0
                return
            kept.put([keys[asked[row]] for row in same], rows)

    def _rows_of(self, codec: Codec, width: int) -> LruRows:
        """Return the rows of a codec; the codecs in use share the budget equally."""
        kept = "tokens" if self._keep == "tokens" else f"{codec.name} {codec.hash}"
        key = f"{kept} {codec.num_tokens} x {codec.token_dim}"
        in_use = {
            name: rows
            for name, rows in self._rows.items()
            if name == key or self._fetches - rows.last_used < _UNUSED
        }
        if key not in self._rows or len(in_use) < len(self._rows):
            shares = {name: (rows.codec, rows.width) for name, rows in in_use.items()}
            shares[key] = (codec, width)
            del in_use
            self._rows.clear()  # frees the old rows before the new ones are allocated
            share = self._budget // len(shares)
            dtype = torch.float16 if self._keep == "tokens" else torch.uint8
            for name, (owner, columns) in shares.items():
                capacity = share // (columns * dtype.itemsize)
                self._rows[name] = LruRows(owner, capacity, columns, dtype, self._device)
                self._rows[name].last_used = self._fetches
        return self._rows[key]

    def _decoded(
        self, parts: Sequence[_Part], shape: tuple[int, int, int], target: torch.device
    ) -> Tensor:
        """Copy parts to a device, decode them there, and put them in order."""
        tokens: Tensor | None = None
        for part in parts:
            rows = to_device(part.rows, target)
            if self._keep == "tokens":
                own = rows.view(-1, *shape[1:])  # (k, m, d_text)
            else:
                own = self._reader(target).decode(part.codec, rows)
            if part.which is not None:
                which = to_device(torch.from_numpy(part.which), target)
                own = own.index_select(0, which)  # (p, m, d_text)
            if len(parts) == 1:
                return own  # its places are all, in order
            if tokens is None:
                tokens = torch.empty(shape, dtype=torch.float16, device=target)  # (n, m, d_text)
            tokens[to_device(torch.from_numpy(part.places), target)] = own
        if tokens is None:
            return torch.empty(shape, dtype=torch.float16, device=target)
        return tokens

    def _reader(self, device: torch.device) -> TokenReader:
        return self._readers.setdefault(device, TokenReader(device))

    def _width(self, codec: Codec) -> int:
        """Return the bytes of an image in the cache."""
        if self._keep == "tokens":
            return 2 * codec.num_tokens * codec.token_dim
        return codec.nbytes

    @contextmanager
    def _ordered_on_device(self) -> Iterator[None]:
        """Order the work of several CUDA streams on the rows."""
        if self._device.type != "cuda":
            yield
            return
        stream = torch.cuda.current_stream(self._device)
        if self._written is None:
            self._written = torch.cuda.Event()  # type: ignore[no-untyped-call]
        else:
            stream.wait_event(self._written)
        yield
        self._written.record(stream)


def _share(collection: ImageCollection, room: int) -> tuple[int, Kept | None]:
    """Return the bytes of an automatic cache, at most `room`, and what it keeps."""
    images = collection.count()
    images += int(_MORE_SHARE * images) + _MORE
    codec = collection.codec
    decoded = 2 * codec.num_tokens * codec.token_dim
    if images * decoded <= room:
        return images * decoded, "tokens"
    return min(images * codec.nbytes, room), "codes" if codec.nbytes <= room else None


def token_keys(collection: ImageCollection, points: Iterable[tuple[str, Payload]]) -> list[Key]:
    """Return the key of each image's tokens: collection, image, place, codec and checksum.

    Args:
        collection: The collection of the images.
        points: Id and payload of each image.
    """
    files = files_of(collection.store)
    home = collection.location if files is None else files.store_id
    scope = f"{home} {collection.identity}"
    keys: list[Key] = []
    for image_id, payload in points:
        get = reference_of(payload).get
        # As text, whatever its type: an invalid reference must fail when it is read, not here.
        keys.append(
            f"{scope} {image_id} {get('segment')} {get('record')} {get('codec')} {get('checksum')}"
        )
    return keys


def _known_keys(candidates: Sequence[Candidate]) -> Sequence[Key] | None:
    """Return the keys that the first stage knows; None if it does not."""
    if isinstance(candidates, Candidates | JoinedCandidates):
        return candidates.token_keys
    return None


def _stored(candidates: Iterable[Candidate]) -> Iterator[tuple[str, Payload]]:
    return ((candidate.image_id, candidate.payload) for candidate in candidates)


def _pages(collection: ImageCollection, image_ids: Iterable[str] | None) -> Iterator[Candidate]:
    """Yield images as candidates."""
    if image_ids is None:
        for page in collection.index.scroll(batch_size=_PAGE):
            others = {point.id for point in collection.of_other_programs(page)}
            for point in page:
                if point.id in others:
                    continue
                yield Candidate(point.id, 0.0, 0, point.payload)
        return
    ids = iter(image_ids)
    while page_ids := list(islice(ids, _PAGE)):
        payloads = in_order(page_ids, collection.index.retrieve(page_ids, tokens=False))
        for image_id, payload in zip(page_ids, payloads, strict=True):
            yield Candidate(image_id, 0.0, 0, payload)
