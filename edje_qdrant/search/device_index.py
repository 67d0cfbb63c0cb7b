"""Exact first stage on a device: the embeddings of a collection in its memory."""

from __future__ import annotations

import json
import logging
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.index import Filter
from edje_qdrant.index.ranking import SLACK, levelled
from edje_qdrant.index.validate import check_limit, check_vectors
from edje_qdrant.rerank.token_cache import token_keys
from edje_qdrant.types import Candidates, Payload, Point

__all__ = ["DeviceIndex"]

_log = logging.getLogger(__name__)

# Points read from the engine at a time.
_PAGE = 2048

# Share of a GPU's free memory that embeddings may take.
_SHARE = 1 / 3

# Numbers in a table of queries x images, and in the vectors that are compared exactly.
_GPU_CELLS = 1 << 28
_CPU_CELLS = 1 << 24

# Filters whose matches are kept, a byte for each point, and most points that match such a filter.
_KEPT_FILTERS = 32
_MOST_MATCHES = 100_000

# Seconds between two looks at the number of points, where other processes can write.
_LOOK_EVERY = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class _Matches:
    """The points that match a filter.

    Attributes:
        others: `(n,)` True where a row does not match.
        count: Number of rows that match.
    """

    others: Tensor
    count: int


class DeviceIndex:
    """Find the images nearest to embeddings by comparing all embeddings of a collection.

    The embeddings are read from the engine once. Every later write through the same open collection
    is noted, and read from the engine before the next search, so a search finds what a search of
    the engine would find. Payloads are kept in host memory, as JSON. Threads may share an object.

    Scores are cosines of float32 numbers, within 1e-5 of the engine's exact search. If a GPU has no
    room for float32, embeddings are kept as float16; then scores are within 5e-4 of it.

    A filter that is used for the first time is left to the engine. Its matches are then kept until
    the next write. Filters that match more than 100,000 points are always left to the engine.

    Where other processes can write (a Qdrant server), the number of points is compared every two
    seconds, and ids are compared if it differs. Payloads are not kept there, but read at each
    search, while the device scores. An embedding that another process replaces stays the old one
    until `reload`.

    Args:
        collection: The collection.
        device: Device of the embeddings.

    Raises:
        ConfigError: The device does not have enough memory.
        StoreError: The collection cannot be read.
        EngineUnavailableError: The server cannot be reached.
    """

    def __init__(self, collection: ImageCollection, device: torch.device | str) -> None:
        self._collection, self._device = collection, torch.device(device)
        self._index = collection.index
        self._dim = collection.contract.embedding_dim
        self._shared = self._index.engine == "qdrant"  # other processes can write
        self._looked = time.monotonic()
        self._lock = Lock()  # of everything but what was noted
        self._noting = Lock()
        self._closed = False
        self._noted: set[str] = set()
        self._some_deleted = False
        self._filters: OrderedDict[str, _Matches | None] = OrderedDict()  # None: used once
        self._ids: list[str] = []  # of each row
        self._keys: list[str] = []  # of the tokens of each row
        self._payloads: list[bytes] = []  # of each row; empty where others can write
        self._row_of: dict[str, int] = {}
        self._others: set[str] = set()  # points of other programs, which are left out
        self._vectors = torch.empty(0, self._dim)
        # The index must not keep alive an object that was dropped without being closed.
        note = weakref.WeakMethod(self._note)

        def observer(image_ids: Sequence[str] | None) -> None:
            if (method := note()) is not None:
                method(image_ids)

        self._end_notes = weakref.finalize(self, self._index.observe(observer))
        try:
            self._load()
        except BaseException:
            self._end_notes()
            raise

    @staticmethod
    def fits(collection: ImageCollection, device: torch.device) -> bool:
        """Return whether a GPU has room for the embeddings of a collection."""
        dim = collection.contract.embedding_dim
        return device.type == "cuda" and 2 * collection.count() * dim <= _room(device)

    @property
    def device(self) -> torch.device:
        """Return the device of the embeddings."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the numbers of the embeddings."""
        dtype: torch.dtype = self._vectors.dtype
        return dtype

    def __len__(self) -> int:
        return len(self._ids)

    def reload(self) -> None:
        """Read all embeddings again; raises the errors of the constructor."""
        with self._lock:
            self._load()

    def close(self) -> None:
        """End the notes of writes and free the memory; later searches are the engine's."""
        self._end_notes()
        with self._lock:
            self._closed = True
            self._vectors = self._vectors[:0].clone()
            self._ids, self._keys, self._payloads, self._row_of = [], [], [], {}
            self._filters.clear()

    def nearest(
        self,
        embeddings: NDArray[np.float32] | Tensor,
        num_candidates: int,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
    ) -> list[Candidates]:
        """Find the points nearest to each of `(q, d)` embeddings; see `BaseCollection.nearest`.

        Args:
            embeddings: `(q, d)` in host memory or on a device.
            num_candidates: Maximum number of candidates for each embedding.
            filter: Search only points whose payload matches; None or `{}` for all.
            timeout: For a filter that is left to a server.

        Raises:
            ConfigError: As `BaseCollection.nearest`.
            StoreError: The engine failed.
            EngineUnavailableError: The server cannot be reached.
        """
        check_limit(num_candidates)
        if not isinstance(embeddings, Tensor):
            embeddings = torch.from_numpy(check_vectors(embeddings, self._dim))
        elif embeddings.ndim != 2 or embeddings.shape[1] != self._dim:
            raise ConfigError(
                f"embeddings have shape {tuple(embeddings.shape)}; this collection takes "
                f"(q, {self._dim}): use the model that it was written with"
            )
        with self._lock, torch.inference_mode():
            try:
                self._follow()
                usable, matches = self._matching(filter)
                if usable and not self._closed:
                    return self._search(embeddings, num_candidates, matches)
            except torch.OutOfMemoryError:
                _log.warning("%s has no memory left for the first stage; the engine is searched",
                             self._device)  # fmt: skip
        queries = embeddings.float().cpu().numpy()
        return self._collection.nearest(queries, num_candidates, filter=filter, timeout=timeout)

    def forget(self, image_ids: Sequence[str]) -> None:
        """Read points from the engine again before the next search, as some were deleted."""
        self._note(image_ids)

    def _note(self, image_ids: Sequence[str] | None) -> None:
        """Remember which points a write concerned; called by the index."""
        with self._noting:
            if image_ids is None:
                self._some_deleted = True
            else:
                self._noted.update(image_ids)

    def _load(self) -> None:
        """Read all points."""
        with self._noting:
            self._noted.clear()
            self._some_deleted = False
        self._filters.clear()
        self._ids, self._keys, self._payloads, self._row_of = [], [], [], {}
        self._others.clear()
        self._vectors = torch.empty(0, self._dim)  # frees the old ones first
        count = self._collection.count()
        try:
            self._vectors = self._allocated(count, self._dtype_for(count))
            for page in self._index.scroll(batch_size=_PAGE, vectors=True):
                self._put(page)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ConfigError(
                f"{self._device} does not have the memory for the {count:,} embeddings of "
                f"{self._collection.name!r}; search with first_stage='engine'"
            ) from error
        if self._device.type == "cuda":  # other threads may search on other streams
            torch.cuda.synchronize(self._device)

    def _dtype_for(self, count: int) -> torch.dtype:
        whole = self._device.type != "cuda" or 4 * count * self._dim <= _room(self._device)
        return torch.float32 if whole else torch.float16

    def _allocated(self, capacity: int, dtype: torch.dtype) -> Tensor:
        return torch.empty((capacity, self._dim), dtype=dtype, device=self._device)

    def _follow(self) -> None:
        """Read from the engine what was written since the last search."""
        if self._shared and time.monotonic() - self._looked > _LOOK_EVERY:
            self._looked = time.monotonic()
            known = len(self._ids) + len(self._others)
            if self._collection.count() != known:
                self._collection.require_unchanged()  # a migration leaves an empty one
                self._some_deleted = True
        if not self._noted and not self._some_deleted:
            return
        with self._noting:
            noted, some_deleted = self._noted, self._some_deleted
            self._noted, self._some_deleted = set(), False
        self._filters.clear()
        try:
            if some_deleted:
                pages = self._index.scroll(batch_size=_PAGE, payload=False)
                present = {point.id for page in pages for point in page}
                self._others &= present
                noted |= present ^ (self._row_of.keys() | self._others)
                integers = {image_id for image_id in noted if image_id.isdecimal()}
                self._others |= integers  # only other programs write them
                noted -= integers
            ids = sorted(noted)
            for start in range(0, len(ids), _PAGE):
                part = ids[start : start + _PAGE]
                vectors = self._index.vectors(part)
                payloads = self._index.retrieve(part, tokens=False)
                found = [Point(i, vectors[i], payloads[i]) for i in part
                         if i in vectors and i in payloads]  # fmt: skip
                self._put(found)
                self._remove({*part} - {point.id for point in found})
        except BaseException:
            with self._noting:  # the next search tries again
                self._noted |= noted
                self._some_deleted |= some_deleted
            raise

    def _put(self, points: Sequence[Point]) -> None:
        """Add points, or replace those with the same id."""
        others = {point.id for point in self._collection.of_other_programs(points)}
        if others or self._others:
            self._remove(others)
            self._others |= others
            points = [point for point in points if point.id not in others]
            self._others.difference_update(point.id for point in points)
        if not points:
            return
        fresh = [point.id for point in points if point.id not in self._row_of]
        needed = len(self._ids) + len(fresh)
        if needed > len(self._vectors):
            grown = self._allocated(max(needed, needed * 5 // 4), self.dtype)
            grown[: len(self._ids)] = self._vectors[: len(self._ids)]
            self._vectors = grown
        keys = token_keys(self._collection, ((point.id, point.payload) for point in points))
        for point_id in fresh:
            self._row_of[point_id] = len(self._ids)
            self._ids.append(point_id)
            self._keys.append("")
            self._payloads.append(b"")
        rows = [self._row_of[point.id] for point in points]
        for row, key, point in zip(rows, keys, points, strict=True):
            self._keys[row] = key
            if not self._shared:
                self._payloads[row] = json.dumps(point.payload, separators=(",", ":")).encode()
        vectors = torch.from_numpy(np.array([point.vector for point in points], np.float32))
        place = torch.tensor(rows, device=self._device)
        self._vectors[place] = vectors.to(self._device, self.dtype)

    def _remove(self, image_ids: Collection[str]) -> None:
        """Remove points; the last rows take their places."""
        self._others.difference_update(image_ids)
        gone = {self._row_of.pop(image_id) for image_id in image_ids if image_id in self._row_of}
        if not gone:
            return
        count = len(self._ids) - len(gone)
        movers = [row for row in range(count, len(self._ids)) if row not in gone]
        holes = sorted(row for row in gone if row < count)
        for hole, mover in zip(holes, movers, strict=True):
            self._ids[hole], self._keys[hole] = self._ids[mover], self._keys[mover]
            self._payloads[hole] = self._payloads[mover]
            self._row_of[self._ids[hole]] = hole
        del self._ids[count:], self._keys[count:], self._payloads[count:]
        if holes:
            to, source = (torch.tensor(rows, device=self._device) for rows in (holes, movers))
            self._vectors[to] = self._vectors[source]

    def _matching(self, filter: Filter | None) -> tuple[bool, _Matches | None]:
        """Return whether a filter can be used here, and what matches it; None for all points."""
        if filter is None or filter == {}:
            return True, None
        if self._shared:  # others change payloads without notice
            return False, None
        key = repr(filter)
        if key not in self._filters:
            self._filters[key] = None
            if len(self._filters) > _KEPT_FILTERS:
                self._filters.popitem(last=False)
            return False, None
        self._filters.move_to_end(key)
        matches = self._filters[key]
        if matches is None:
            if self._index.count(filter) > _MOST_MATCHES:
                return False, None
            pages = self._index.scroll(batch_size=_PAGE, filter=filter, payload=False)
            ids = [point.id for page in pages for point in page]
            rows = [self._row_of[image_id] for image_id in ids if image_id in self._row_of]
            others = np.ones(len(self._ids), np.bool_)
            others[rows] = False
            matches = _Matches(torch.from_numpy(others).to(self._device), len(rows))
            self._filters[key] = matches
        return True, matches

    def _search(
        self, embeddings: Tensor, num_candidates: int, matches: _Matches | None
    ) -> list[Candidates]:
        count = len(self._ids) if matches is None else matches.count
        wanted = min(num_candidates + SLACK, count)
        if wanted == 0 or not len(embeddings):
            return [Candidates([], _nothing) for _ in embeddings]
        queries = embeddings.to(self._device, torch.float32)
        queries = queries / queries.norm(dim=1, keepdim=True)  # (q, d)
        cells = _GPU_CELLS if self._device.type == "cuda" else _CPU_CELLS
        step = max(1, cells // max(len(self._ids), 2 * wanted * self._dim))
        found: list[tuple[list[float], list[int]]] = []
        for start in range(0, len(queries), step):
            found += self._best(queries[start : start + step], wanted, count, matches)
        payloads = _Payloads(self._collection, self._note)
        return [self._candidates(*own, num_candidates, payloads) for own in found]

    def _best(
        self, queries: Tensor, wanted: int, count: int, matches: _Matches | None
    ) -> list[tuple[list[float], list[int]]]:
        """Return cosines, descending, and rows of the `wanted` best of `count` points."""
        vectors = self._vectors[: len(self._ids)]
        table = queries.to(vectors.dtype) @ vectors.T  # (q, n)
        if matches is not None:
            table.masked_fill_(matches.others, -torch.inf)
        # More than wanted, as the product may be rounded to half precision or TF32.
        rows = table.topk(min(2 * wanted, count), sorted=False).indices  # (q, k)
        # In float32, and the same for every number of queries, which a matrix product is not.
        cosines = (vectors[rows].float() * queries[:, None]).sum(dim=2)  # (q, k)
        cosines, places = cosines.topk(wanted)
        rows = rows.gather(1, places)
        # Both in one copy to the host.
        both = torch.cat([cosines.view(torch.int32), rows.int()], dim=1).cpu().numpy()
        scores = both[:, :wanted].view(np.float32)
        if np.isnan(scores).any():
            raise ConfigError(
                "an embedding of a query is zero or holds numbers that are not finite; it has no "
                "direction to compare: check the encoder and its input"
            )
        return [*zip(scores.tolist(), both[:, wanted:].tolist(), strict=True)]

    def _candidates(
        self, cosines: list[float], rows: list[int], limit: int, payloads: _Payloads
    ) -> Candidates:
        levels, order = levelled(cosines, lambda at: self._ids[rows[at]])
        kept = [rows[at] for at in order[:limit]]
        ids, keys = [self._ids[row] for row in kept], [self._keys[row] for row in kept]
        if not self._shared:
            texts = [self._payloads[row] for row in kept]
            return Candidates(
                levels[:limit], lambda at: (ids[at], json.loads(texts[at])), token_keys=keys
            )
        payloads.ids.update(ids)

        def point(at: int) -> tuple[str, Payload]:
            return ids[at], payloads.read().get(ids[at], {})

        def absent() -> Collection[int]:
            stored = payloads.read()
            if len(stored) == len(payloads.ids):
                return ()
            return {at for at, image_id in enumerate(ids) if image_id not in stored}

        return Candidates(levels[:limit], point, token_keys=keys, absent=absent)


class _Payloads:
    """Payloads on a server of a batch's candidates, read when the first one is needed."""

    def __init__(self, collection: ImageCollection, note: Callable[[Sequence[str]], None]) -> None:
        self._collection, self._note = collection, note
        self.ids: set[str] = set()
        self._read: Mapping[str, Mapping[str, Any]] | None = None

    def read(self) -> Mapping[str, Mapping[str, Any]]:
        """Return id -> payload; images that were deleted are left out."""
        if self._read is None:
            self._read = self._collection.index.retrieve([*self.ids], tokens=False)
            self._collection.require_own(self._read)
            if gone := self.ids - self._read.keys():
                self._note([*gone])  # perhaps another process deleted them
        return self._read


def _room(device: torch.device) -> float:
    """Return the bytes that embeddings may take on a GPU."""
    free, _ = torch.cuda.mem_get_info(device)
    return _SHARE * free


def _nothing(at: int) -> tuple[str, Payload]:
    raise IndexError(at)
