"""Vectors in a faiss index: flat, in cells (IVF) or in a graph (HNSW); built, saved, searched."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import xxhash
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError, MissingExtraError
from edje_qdrant.files import sync_folder
from edje_qdrant.index import hnsw

__all__ = ["KINDS", "Built", "FaissKind", "Found", "check_kind", "load_faiss", "scan", "selector"]

#: How vectors are searched: all of them one by one; those of the nearest cells; along a graph.
FaissKind: TypeAlias = Literal["flat", "ivf", "hnsw"]

KINDS: tuple[str, ...] = get_args(FaissKind)

#: `(q, k)` float32 cosines, best first, and `(q, k)` int64 places, -1 where there is no more.
Found: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64]]

#: Below so many vectors a scan is exact and quick, and neither cells nor a graph are built.
SCANNED = 10_000

# Vectors that k-means wants to see for each cell.
_PER_CELL = 39

# Cells to look into, at least: a query lies apart from the vectors, and its nearest in many cells.
_PROBED = 128

_CHUNK = 1 << 20


def load_faiss() -> ModuleType:
    """Import faiss.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss-cpu", "faiss") from error
    module: ModuleType = faiss
    return module


def check_kind(kind: str) -> FaissKind:
    """Return the kind of an index.

    Raises:
        ConfigError: There is no such kind.
    """
    for known in get_args(FaissKind):
        if kind == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"kind is {kind!r}; give one of {', '.join(KINDS)}")


def selector(mask: NDArray[np.bool_]) -> Any:
    """Return what tells faiss to look at those places alone for which `(n,)` mask is true."""
    return load_faiss().IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def scan(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    wanted: int,
    mask: NDArray[np.bool_] | None,
) -> Found:
    """Compare `(q, d)` queries with each of `(n, d)` vectors, or those that the mask leaves."""
    faiss = load_faiss()
    scores = np.empty((len(queries), wanted), np.float32)
    places = np.empty((len(queries), wanted), np.int64)
    chosen = None if mask is None else selector(mask)
    faiss.knn_inner_product(
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        queries.shape[1],
        len(queries),
        len(vectors),
        wanted,
        faiss.swig_ptr(scores),
        faiss.swig_ptr(places),
        chosen,
    )
    return scores, places


@dataclass(frozen=True, slots=True)
class Built:
    """Hold a faiss index over vectors of unit length, which does not change any more.

    Attributes:
        shape: `flat`, `ivf` or `hnsw`: the kind asked for, or `flat` where vectors are few.
        rows: `(n,)` int64, ascending: the row of the vector in each place.
        index: The faiss index.
    """

    shape: FaissKind
    rows: NDArray[np.int64]
    index: Any

    @classmethod
    def of(cls, kind: FaissKind, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> Built:
        """Build an index of `(n, d)` vectors."""
        faiss = load_faiss()
        dim = vectors.shape[1]
        shape = shape_of(kind, len(rows))
        if shape == "flat":
            index = faiss.IndexFlatIP(dim)
        elif shape == "ivf":
            index = faiss.IndexIVFFlat(
                faiss.IndexFlatIP(dim), dim, cells(len(rows)), faiss.METRIC_INNER_PRODUCT
            )
            index.train(vectors)
        else:
            index = faiss.IndexHNSWFlat(dim, hnsw.LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = hnsw.BUILD_WIDTH
        index.add(vectors)
        return cls(shape, rows, index)

    def extensible(self, kind: FaissKind, more: int) -> bool:
        """Return whether `more` vectors can join without building everything anew."""
        total = len(self.rows) + more
        if self.shape == "flat" or shape_of(kind, total) != self.shape:
            return False
        return self.shape == "hnsw" or cells(total) <= 2 * self.index.nlist

    def extended(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> Built:
        """Return an index of these vectors as well; this one stays as it is."""
        index = load_faiss().clone_index(self.index)
        index.add(vectors)
        return Built(self.shape, np.concatenate([self.rows, rows]), index)

    def scan(
        self, queries: NDArray[np.float32], wanted: int, mask: NDArray[np.bool_] | None
    ) -> Found:
        """Find the nearest of those places that the mask leaves, missing none."""
        faiss = load_faiss()
        chosen = None if mask is None else selector(mask)
        if self.shape == "ivf":
            parameters = faiss.SearchParametersIVF(sel=chosen, nprobe=self.index.nlist)
            return self._search(self.index, queries, wanted, parameters)
        flat = self.index.storage if self.shape == "hnsw" else self.index
        return self._search(flat, queries, wanted, faiss.SearchParameters(sel=chosen))

    def walk(
        self, queries: NDArray[np.float32], wanted: int, mask: NDArray[np.bool_] | None
    ) -> Found:
        """Find nearly all of the nearest of those places that the mask leaves, which are most."""
        faiss = load_faiss()
        chosen = None if mask is None else selector(mask)
        if self.shape == "ivf":
            parameters = faiss.SearchParametersIVF(sel=chosen, nprobe=probed(self.index.nlist))
        elif self.shape == "hnsw":
            parameters = faiss.SearchParametersHNSW(sel=chosen, efSearch=hnsw.search_width(wanted))
        else:
            return self.scan(queries, wanted, mask)
        return self._search(self.index, queries, wanted, parameters)

    def save(self, folder: Path) -> str:
        """Write the index to a file named after its digest; return that."""
        fresh = folder / "built.new"
        load_faiss().write_index(self.index, str(fresh))
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        digest = digest_of(fresh)
        os.replace(fresh, path_of(folder, digest))
        sync_folder(folder)
        return digest

    @classmethod
    def load(cls, folder: Path, shape: str, digest: str, rows: NDArray[np.int64]) -> Built | None:
        """Read the index that `save` wrote; None if its file is missing or damaged."""
        path = path_of(folder, digest)
        if not path.is_file() or digest_of(path) != digest:
            return None
        return cls(check_kind(shape), rows, load_faiss().read_index(str(path)))

    @staticmethod
    def _search(index: Any, queries: NDArray[np.float32], wanted: int, parameters: Any) -> Found:
        scores, places = index.search(queries, wanted, params=parameters)
        return scores, places


def shape_of(kind: FaissKind, count: int) -> FaissKind:
    """Return how `count` vectors are best searched where `kind` was asked for."""
    return "flat" if count < SCANNED else kind


def cells(count: int) -> int:
    """Return into how many cells (`nlist`) to sort `count` vectors."""
    return max(1, min(int(4 * math.sqrt(count)), count // _PER_CELL))


def probed(nlist: int) -> int:
    """Return how many of the cells to look into (`nprobe`)."""
    return min(nlist, max(_PROBED, nlist // 8))


def path_of(folder: Path, digest: str) -> Path:
    """Return the file of the built index with that digest."""
    return folder / f"built-{digest}.faiss"


def digest_of(path: Path) -> str:
    """Return the XXH3 of a file, 128 bits in hexadecimal digits."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def remove_others(folder: Path, digests: Sequence[str]) -> None:
    """Remove files of built indexes but for these; a crash may have left some."""
    kept = {path_of(folder, digest) for digest in digests}
    for path in [*folder.glob("built-*.faiss"), folder / "built.new"]:
        if path not in kept:
            path.unlink(missing_ok=True)
