"""Keep the tokens of hot images where they are scored, within a number of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import Literal, get_args

import torch
from torch import Tensor

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import in_order, reference_of
from edje_qdrant.errors import ConfigError
from edje_qdrant.rerank.lru_rows import Key, Rows
from edje_qdrant.rerank.token_loader import DeviceCodes, TokenReader
from edje_qdrant.tokens.checksum import checksums
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.file_store import files_of
from edje_qdrant.types import Candidate

__all__ = ["CacheStats", "DeviceTokenCache", "Kept"]

#: Tokens as they are stored, decoded at every use, or decoded once.
Kept = Literal["codes", "tokens"]

# Images read at a time by `preload`.
_PAGE = 512

# Fetches after which a codec that none of them met makes way for those that are met.
_FORGOTTEN = 256


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Count what a cache did.

    Attributes:
        hits: Images that were there when they were asked for.
        misses: Images that had to be read.
        images: Images held now.
        bytes: Bytes set aside for them, held or free; never more than the budget.
    """

    hits: int
    misses: int
    pictures: int
    bytes: int


class DeviceTokenCache:
    """Keep tokens of the images asked for last in a GPU's memory, or in the CPU's.

    An image is known by what its point says of its tokens (side file, record, codec, checksum),
    not by its id alone, and what is read is kept only if it has that checksum: tokens of an image
    that was replaced are never returned for the new one. What was replaced, deleted or moved is
    never asked for again, and goes as the least recently used.

    Threads, retrievers and collections may share a cache.

    Args:
        budget_bytes: Bytes to hold at most. They are set aside at the first use: on a GPU at once,
            on the CPU as they are filled.
        device: Where: `"cuda"`, `"cpu"`. On the CPU, before a model on a GPU, it saves reading and
            checking; on the model's own device also the copy.
        keep: `"codes"` holds many more images where the codec is small; `"tokens"` saves decoding
            them.

    Raises:
        ConfigError: The budget is below 1, there is no such device, or `keep` is something else.

    Examples:
        >>> cache = DeviceTokenCache(2 << 30, device="cuda")
        >>> cache.preload(collection)
        >>> retriever = TwoStageRetriever(collection, model, token_cache=cache)
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
        except Exception as error:  # torch raises this or that, depending on how it was built
            reason = str(error).splitlines()[0]
            raise ConfigError(f"no cache can be kept on the device {device}: {reason}") from error
        self._budget, self._keep = budget_bytes, keep
        self._turn = Lock()
        self._rows: dict[str, Rows] = {}
        self._readers: dict[torch.device, TokenReader] = {}
        self._hits = self._misses = self._fetches = 0
        self._written: torch.cuda.Event | None = None

    @property
    def device(self) -> torch.device:
        """Return where tokens are kept."""
        return self._device

    @property
    def stats(self) -> CacheStats:
        """Return what the cache did so far, and holds now."""
        with self._turn:
            rows = [*self._rows.values()]
            pictures, nbytes = sum(map(len, rows)), sum(r.nbytes for r in rows)
            return CacheStats(self._hits, self._misses, pictures, nbytes)

    def require(self, collection: ImageCollection) -> None:
        """Check that an image of a collection fits in.

        Raises:
            ConfigError: The budget does not suffice for one.
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
        """Return candidates' tokens, in order; those that are not here are read, and kept.

        Args:
            collection: Where the candidates were found.
            candidates: As the first stage found them, the same image as often as you like.
            device: Where the tokens are needed; the cache's own by default.

        Returns:
            `(n, m, d_text)` float16 on that device, a copy.

        Raises:
            TokensNotFoundError: Some have none; names the ids.
            TokensCorruptError: Some are damaged; names the ids.
            ConfigError: The budget cannot be set aside on the device.
        """
        target = self._device if device is None else torch.device(device)
        keys = _keys(collection, candidates)
        wanted = dict(zip(keys, candidates, strict=True))
        distinct = [*wanted]
        found = self._held(distinct, pinned=target.type == "cuda")
        here = {at for places, _, _ in found for at in places}
        absent = [at for at in range(len(distinct)) if at not in here]
        if absent:
            missing = [distinct[at] for at in absent]
            found += self._read(collection, [wanted[key] for key in missing], missing, absent)
        contract = collection.contract
        shape = (len(distinct), contract.num_tokens, contract.token_dim)
        tokens = self._together(found, shape, target)
        if len(distinct) == len(keys):
            return tokens
        place = {key: at for at, key in enumerate(distinct)}
        return tokens[torch.tensor([place[key] for key in keys], device=target)]

    def preload(self, collection: ImageCollection, image_ids: Sequence[str] | None = None) -> int:
        """Read images into the cache until it is full; what else it held makes way.

        Args:
            collection: Where they are.
            image_ids: Which, the most wanted first; None for all, in the order of their ids.

        Returns:
            How many of them were read.

        Raises:
            TokensNotFoundError: An image or its tokens are not there; names the ids.
            TokensCorruptError: Tokens are damaged; names the ids.
            ConfigError: The budget does not suffice for an image, or cannot be set aside.
        """
        self.require(collection)
        if isinstance(image_ids, str):
            raise ConfigError(f"image_ids is the text {image_ids!r}; give a list of ids")
        room = self._budget // self._width(collection.codec)
        loaded = 0
        pages = _pages(collection, None if image_ids is None else dict.fromkeys(image_ids))
        while loaded < room and (page := list(islice(pages, min(_PAGE, room - loaded)))):
            keys = _keys(collection, page)
            held = {at for places, _, _ in self._held(keys, count=False) for at in places}
            absent = [at for at in range(len(page)) if at not in held]
            self._read(collection, [page[at] for at in absent], [keys[at] for at in absent], absent)
            loaded += len(page)
        return loaded

    def clear(self) -> None:
        """Let go of everything, and of the memory."""
        with self._turn:
            self._rows.clear()

    def _held(
        self, keys: Sequence[Key], *, count: bool = True, pinned: bool = False
    ) -> list[tuple[list[int], Codec, Tensor]]:
        """Return what is here: places among the keys, its codec, and a copy of its rows."""
        found: list[tuple[list[int], Codec, Tensor]] = []
        with self._turn, self._in_turn_on_device():
            self._fetches += 1
            for rows in self._rows.values():
                places = [at for at, key in enumerate(keys) if key in rows]
                if places:
                    own = [keys[at] for at in places]
                    found.append((places, rows.codec, rows.take(own, pinned=pinned)))
                    rows.last_used = self._fetches
            if count:
                here = sum(len(places) for places, _, _ in found)
                self._hits += here
                self._misses += len(keys) - here
        return found

    def _read(
        self,
        collection: ImageCollection,
        candidates: Sequence[Candidate],
        keys: Sequence[Key],
        places: Sequence[int],
    ) -> list[tuple[list[int], Codec, Tensor]]:
        """Read what is not here, and keep what is what its key says."""
        if not candidates:
            return []
        found: list[tuple[list[int], Codec, Tensor]] = []
        for part in self._reader(self._device).read(collection, candidates):
            kept = part.codes
            if self._keep == "tokens":
                kept = self._reader(self._device).decode(part.codec, part.codes).flatten(1)
            found.append(([places[row] for row in part.rows], part.codec, kept))
            self._keep_rows(part, kept, keys)
        return found

    def _keep_rows(self, part: DeviceCodes, kept: Tensor, keys: Sequence[Key]) -> None:
        own = [keys[row] for row in part.rows]
        # An image that was written again between search and reading is read as it is by now.
        same = [
            at
            for at, checksum in enumerate(checksums(part.stored))
            if own[at].checksum is not None and own[at].checksum == checksum
        ]
        with self._turn, self._in_turn_on_device():
            rows = self._rows_of(part.codec, kept.shape[1])
            if len(same) == len(own):
                rows.put(own, kept)
            elif same:
                rows.put([own[at] for at in same], kept[torch.tensor(same, device=self._device)])

    def _rows_of(self, codec: Codec, width: int) -> Rows:
        """Return where rows of a codec are kept; the budget is shared among the codecs in use."""
        kept = "tokens" if self._keep == "tokens" else f"{codec.name} {codec.hash}"
        key = f"{kept} {codec.num_tokens} x {codec.token_dim}"
        in_use = {
            name: rows
            for name, rows in self._rows.items()
            if name == key or self._fetches - rows.last_used < _FORGOTTEN
        }
        if key not in self._rows or len(in_use) < len(self._rows):
            shares = {name: (rows.codec, rows.width) for name, rows in in_use.items()}
            shares[key] = (codec, width)
            self._rows.clear()  # first, or old and new would be there at once
            share = self._budget // len(shares)
            dtype = torch.float16 if self._keep == "tokens" else torch.uint8
            for name, (owner, columns) in shares.items():
                self._rows[name] = Rows(
                    owner, share // (columns * dtype.itemsize), columns, dtype, self._device
                )
                self._rows[name].last_used = self._fetches
        return self._rows[key]

    def _together(
        self,
        found: Sequence[tuple[list[int], Codec, Tensor]],
        shape: tuple[int, int, int],
        target: torch.device,
    ) -> Tensor:
        """Decode parts where they are needed, and put them in order."""
        parts = []
        for places, codec, rows in found:
            there = _moved(rows, target)
            if self._keep == "tokens":
                parts.append((places, there.view(-1, *shape[1:])))
            else:
                parts.append((places, self._reader(target).decode(codec, there)))
        if len(parts) == 1:
            return parts[0][1]
        tokens = torch.empty(shape, dtype=torch.float16, device=target)
        for places, part in parts:
            tokens[torch.tensor(places, device=target)] = part
        return tokens

    def _reader(self, device: torch.device) -> TokenReader:
        return self._readers.setdefault(device, TokenReader(device))

    def _width(self, codec: Codec) -> int:
        """Return the bytes of an image, as it is kept."""
        if self._keep == "tokens":
            return 2 * codec.num_tokens * codec.token_dim
        return codec.nbytes

    @contextmanager
    def _in_turn_on_device(self) -> Iterator[None]:
        """Keep work of several streams on the rows in the order in which it was asked for."""
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


def _keys(collection: ImageCollection, candidates: Sequence[Candidate]) -> list[Key]:
    """Return what tells each candidate's tokens from all others'."""
    files = files_of(collection.store)
    home = collection.location if files is None else files.store_id
    scope = f"{home} {collection.identity}"
    keys = []
    for candidate in candidates:
        reference = reference_of(candidate.payload)
        # Text, whatever stands there: a foreign reference must fail in reading, not here.
        where = f"{reference.get('segment')} {reference.get('record')} {reference.get('codec')}"
        checksum = reference.get("checksum")
        known = checksum if isinstance(checksum, str) else None
        keys.append(Key(scope, candidate.image_id, where, known))
    return keys


def _pages(collection: ImageCollection, image_ids: Iterable[str] | None) -> Iterator[Candidate]:
    """Yield images as if they had been found."""
    if image_ids is None:
        for page in collection.index.scroll(batch_size=_PAGE):
            for point in page:
                yield Candidate(point.id, 0.0, 0, point.payload)
        return
    ids = iter(image_ids)
    while page_ids := list(islice(ids, _PAGE)):
        payloads = in_order(page_ids, collection.index.retrieve(page_ids, tokens=False))
        for image_id, payload in zip(page_ids, payloads, strict=True):
            yield Candidate(image_id, 0.0, 0, payload)


def _moved(rows: Tensor, target: torch.device) -> Tensor:
    if rows.device == target:
        return rows
    if target.type == "cuda" and rows.device.type == "cpu":
        pinned = rows if rows.is_pinned() else rows.pin_memory()
        return pinned.to(target, non_blocking=True)
    return rows.to(target)
