"""Tokens as a few bytes each, and a codebook for all of them: residual product quantization."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError, MissingExtraError
from edje_qdrant.tokens.codebook_bytes import Codebook, Parameters, pack, unpack
from edje_qdrant.tokens.validate import check_finite, check_shape

__all__ = ["ProductCodec"]

_LARGEST = float(np.finfo(np.float16).max)
_CENTROIDS = 256
# More vectors than this make training slower and the codebook hardly better.
_SAMPLE = 256 * _CENTROIDS


@dataclass(frozen=True, slots=True, eq=False)
class ProductCodec:
    """Keep each token as `M` bytes: the nearest of 256 whole tokens, then pieces of the rest.

    The first byte names one of 256 whole tokens; the others name, for each of `M - 1` pieces of
    what that leaves, the nearest of 256 pieces. An image's record is `m * M` bytes, token after
    token. Where the width is no multiple of `M - 1`, the first pieces are one number wider. `fit`
    makes both tables with k-means (faiss); encoding and decoding need numpy alone. Codes mean
    nothing without them.

    Attributes:
        num_tokens: Tokens an image, `m`.
        token_dim: Width of a token, `d_text`.
        token_bytes: Bytes a token, `M`, 2 or more.
        codebook: The tables; nothing before the codec is fitted.
        adapter_hash: Of the adapter whose tokens it was fitted to; `""` where that is not known.
        hash: 16 hexadecimal digits that name the codebook; `""` before the codec is fitted.

    Source: Jégou, Douze, Schmid: Product Quantization for Nearest Neighbor Search (2011).
    """

    num_tokens: int
    token_dim: int
    token_bytes: int
    codebook: Codebook | None = field(default=None, repr=False)
    adapter_hash: str = ""
    hash: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if self.codebook is not None:
            object.__setattr__(self, "hash", self.codebook.hash)

    @property
    def name(self) -> str:
        """Return `"pq32"` for 32 bytes a token."""
        return f"pq{self.token_bytes}"

    @property
    def key(self) -> str:
        """Return the name and 8 digits of the codebook's hash; before fitting, the name."""
        return f"{self.name}-{self.hash[:8]}" if self.hash else self.name

    @property
    def nbytes(self) -> int:
        """Return the bytes one image takes."""
        return self.num_tokens * self.token_bytes

    @property
    def fitted(self) -> bool:
        """Return whether there is a codebook."""
        return self.codebook is not None

    def fit(self, tokens: NDArray[np.float16], *, seed: int = 0) -> ProductCodec:
        """Return this codec with a codebook for tokens like these.

        On one machine, the same tokens and seed give the same codebook. Of more than 65,536 tokens,
        as many are drawn.

        Args:
            tokens: `(n, m, d_text)` float16, of images like those to be stored.
            seed: Of the draw and of k-means.

        Raises:
            ConfigError: The tokens have another shape or dtype, are not all finite, or are fewer
                than 256.
            MissingExtraError: faiss is not installed.
        """
        check_shape(tokens, self.num_tokens, self.token_dim)
        vectors = tokens.reshape(-1, self.token_dim)
        if len(vectors) < _CENTROIDS:
            raise ConfigError(
                f"{self.name} is fitted to {_CENTROIDS} tokens or more, and {len(tokens)} images "
                f"have {len(vectors)}; give {-(-_CENTROIDS // self.num_tokens)} images or more, "
                "a few thousand if you can"
            )
        if len(vectors) > _SAMPLE:
            rows = np.random.default_rng(seed).choice(len(vectors), _SAMPLE, replace=False)
            vectors = vectors[np.sort(rows)]
        check_finite(vectors, self.name)
        exact = vectors.astype(np.float32)
        whole = _halves(_k_means(exact, 1, seed)[0])
        rest = exact - whole.astype(np.float32)[_nearest(exact[None], whole[None])[0]]
        cut = self._cut(rest).transpose(1, 0, 2).reshape(len(rest), -1)
        pieces = _halves(_k_means(cut, self.token_bytes - 1, seed))
        return replace(self, codebook=Codebook(whole, pieces), adapter_hash="")

    def parameters(self) -> bytes | None:
        """Return the codebook as safetensors bytes; nothing before the codec is fitted."""
        if self.codebook is None:
            return None
        return pack(Parameters(self.name, self.token_dim, self.codebook, self.adapter_hash))

    def with_parameters(
        self, parameters: bytes, *, where: str = "the codec's parameters"
    ) -> ProductCodec:
        """Return this codec with the codebook that another one's `parameters` returned.

        Args:
            parameters: The bytes.
            where: What errors call them.

        Raises:
            ConfigError: They are another codec's, or for tokens of another width.
            TokensCorruptError: They are damaged.
        """
        found = unpack(parameters, where=where)
        if (found.name, found.token_dim) != (self.name, self.token_dim):
            raise ConfigError(
                f"{where}: a codebook of {found.name} for tokens of {found.token_dim} numbers, "
                f"where one of {self.name} for {self.token_dim} is needed; fit one to these tokens"
            )
        return replace(self, codebook=found.codebook, adapter_hash=found.adapter_hash)

    def encode(self, tokens: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Turn `(n, m, d_text)` float16 into `(n, nbytes)` uint8.

        An image's codes do not depend on which others come with it.

        Raises:
            ConfigError: The tokens have another shape or dtype, or are not all finite, or the codec
                has no codebook.
        """
        check_shape(tokens, self.num_tokens, self.token_dim)
        check_finite(tokens, self.name)
        book = self._fitted()
        whole = book.whole.astype(np.float32)
        codes = np.empty((len(tokens), self.num_tokens, self.token_bytes), np.uint8)
        for picture, row in zip(tokens.astype(np.float32), codes, strict=True):
            row[:, 0] = _nearest(picture[None], book.whole[None])[0]
            pieces = self._cut(picture - whole[row[:, 0]])
            row[:, 1:] = _nearest(pieces, book.pieces).T
        return codes.reshape(len(tokens), self.nbytes)

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Turn `(n, nbytes)` uint8 into `(n, m, d_text)` float16.

        Raises:
            ConfigError: The codec has no codebook.
        """
        book = self._fitted()
        rows = codes.reshape(-1, self.token_bytes)  # (n * m, M)
        count, _, width = book.pieces.shape
        table = book.pieces.astype(np.float32).reshape(-1, width)
        starts = np.arange(0, count * _CENTROIDS, _CENTROIDS)
        rest = table.take(rows[:, 1:] + starts, axis=0)  # (n * m, M - 1, width)
        wide = self.wide_pieces
        tokens = np.concatenate(
            [
                rest[:, :wide].reshape(len(rows), wide * width),
                rest[:, wide:, : width - 1].reshape(len(rows), (count - wide) * (width - 1)),
            ],
            axis=1,
        )
        # Added up in float32 and rounded once, as every device does it alike.
        tokens += book.whole.astype(np.float32).take(rows[:, 0], axis=0)
        return _halves(tokens).reshape(len(codes), self.num_tokens, self.token_dim)

    @property
    def wide_pieces(self) -> int:
        """Return how many pieces come first that have one number more than the others."""
        count = self.token_bytes - 1
        return self.token_dim - count * (self._width - 1)

    @property
    def _width(self) -> int:
        return -(-self.token_dim // (self.token_bytes - 1))

    def _cut(self, rest: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cut `(k, d_text)` into pieces, `(M - 1, k, width)`, narrow ones with a 0 at the end."""
        count, width, wide = self.token_bytes - 1, self._width, self.wide_pieces
        pieces = np.zeros((count, len(rest), width), np.float32)
        first, last = rest[:, : wide * width], rest[:, wide * width :]
        pieces[:wide] = first.reshape(len(rest), wide, width).swapaxes(0, 1)
        narrow = last.reshape(len(rest), count - wide, width - 1)
        pieces[wide:, :, : width - 1] = narrow.swapaxes(0, 1)
        return pieces

    def _fitted(self) -> Codebook:
        if self.codebook is None:
            raise ConfigError(
                f"{self.name} has no codebook yet: fit one with `edje-qdrant fit-codec` or "
                f"codec_for({self.name!r}, ...).fit(tokens); `edje-qdrant ingest` fits one to a "
                "sample of the source"
            )
        return self.codebook


def _nearest(vectors: NDArray[np.float32], centroids: NDArray[np.float16]) -> NDArray[np.intp]:
    """Return which of `(p, 256, w)` is nearest to each of `(p, k, w)`, as `(p, k)`."""
    exact = centroids.astype(np.float32)
    halves = (exact**2).sum(axis=2)[:, None] / 2  # (p, 1, 256)
    # |x - c|^2 is least where x c - |c|^2 / 2 is largest.
    nearest: NDArray[np.intp] = (vectors @ exact.transpose(0, 2, 1) - halves).argmax(axis=2)
    return nearest


def _halves(numbers: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round to float16, what is too large to its largest."""
    return np.clip(numbers, -_LARGEST, _LARGEST).astype(np.float16)


def _k_means(vectors: NDArray[np.float32], pieces: int, seed: int) -> NDArray[np.float32]:
    """Cut `(k, pieces * width)` vectors into pieces; return `(pieces, 256, width)` centroids."""
    try:
        with warnings.catch_warnings():
            # Of the binding's own types, on import, in later Pythons.
            warnings.simplefilter("ignore", DeprecationWarning)
            import faiss
    except ImportError as error:
        raise MissingExtraError("faiss-cpu", "faiss") from error

    quantizer = faiss.ProductQuantizer(vectors.shape[1], pieces, 8)
    quantizer.cp.seed = seed
    # Else it prints a warning below 39 vectors a centroid, and draws a sample above 256.
    quantizer.cp.min_points_per_centroid = 1
    quantizer.cp.max_points_per_centroid = len(vectors)
    quantizer.train(vectors)
    centroids: NDArray[np.float32] = faiss.vector_to_array(quantizer.centroids)
    return centroids.reshape(pieces, _CENTROIDS, -1)
