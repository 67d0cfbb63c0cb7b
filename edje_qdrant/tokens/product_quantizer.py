"""Residual product quantization: a few bytes per token, and one codebook."""

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
# More vectors slow the fit down and hardly improve the codebook.
_SAMPLE = 256 * _CENTROIDS


@dataclass(frozen=True, slots=True, eq=False)
class ProductCodec:
    """Store each token as `M` bytes: the nearest of 256 whole tokens, and `M - 1` residual pieces.

    The first byte is the index of the nearest of 256 whole tokens. The residual is cut into
    `M - 1` pieces, and each further byte is the index of the nearest of 256 centroids of that
    piece. An image's record is `m * M` bytes, token after token. If the width is not a multiple of
    `M - 1`, the first pieces are one number wider. `fit` computes both tables with k-means (faiss);
    encoding and decoding need numpy only. Codes cannot be decoded without the tables.

    Attributes:
        num_tokens: Number of tokens per image, `m`.
        token_dim: Width of a token, `d_text`.
        token_bytes: Bytes per token, `M`, 2 or more.
        codebook: The tables; None before the codec is fitted.
        adapter_hash: Of the adapter whose tokens it was fitted to; `""` if unknown.
        hash: 16 hexadecimal digits that identify the codebook; `""` before the codec is fitted.

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
        """Return `"pq32"` for 32 bytes per token."""
        return f"pq{self.token_bytes}"

    @property
    def key(self) -> str:
        """Return the name and 8 digits of the codebook's hash; before fitting, the name."""
        return f"{self.name}-{self.hash[:8]}" if self.hash else self.name

    @property
    def nbytes(self) -> int:
        """Return the bytes that one image takes."""
        return self.num_tokens * self.token_bytes

    @property
    def fitted(self) -> bool:
        """Return whether the codec has a codebook."""
        return self.codebook is not None

    def fit(self, tokens: NDArray[np.float16], *, seed: int = 0) -> ProductCodec:
        """Return this codec with a codebook fitted to tokens.

        On one machine, equal tokens and seeds give equal codebooks. At most 65,536 tokens are used,
        drawn at random.

        Args:
            tokens: `(n, m, d_text)` float16, of images similar to those that will be stored.
            seed: Seed of the draw and of k-means.

        Raises:
            ConfigError: Shape or dtype are wrong, a number is not finite, or there are fewer than
                256 tokens.
            MissingExtraError: faiss is not installed.
        """
        check_shape(tokens, self.num_tokens, self.token_dim)
        vectors = tokens.reshape(-1, self.token_dim)
        if len(vectors) < _CENTROIDS:
            raise ConfigError(
                f"{self.name} is fitted to {_CENTROIDS} tokens or more, and {len(tokens)} images "
                f"have {len(vectors)}; give {-(-_CENTROIDS // self.num_tokens)} images or more, "
                "if possible a few thousand"
            )
        if len(vectors) > _SAMPLE:
            rows = np.random.default_rng(seed).choice(len(vectors), _SAMPLE, replace=False)
            vectors = vectors[np.sort(rows)]
        check_finite(vectors, self.name)
        exact = vectors.astype(np.float32)
        whole = _to_float16(_k_means(exact, 1, seed)[0])
        rest = exact - whole.astype(np.float32)[_nearest(exact[None], whole[None])[0]]
        cut = self._cut(rest).transpose(1, 0, 2).reshape(len(rest), -1)
        pieces = _to_float16(_k_means(cut, self.token_bytes - 1, seed))
        return replace(self, codebook=Codebook(whole, pieces), adapter_hash="")

    def parameters(self) -> bytes | None:
        """Return the codebook as safetensors bytes, or None before the codec is fitted."""
        if self.codebook is None:
            return None
        return pack(Parameters(self.name, self.token_dim, self.codebook, self.adapter_hash))

    def with_parameters(
        self, parameters: bytes, *, where: str = "the codec's parameters"
    ) -> ProductCodec:
        """Return this codec with a codebook that `parameters` returned.

        Args:
            parameters: Bytes of the codebook.
            where: Name of their source in error messages.

        Raises:
            ConfigError: The codebook is of another codec, or for tokens of another width.
            TokensCorruptError: The bytes are damaged.
        """
        found = unpack(parameters, where=where)
        if (found.name, found.token_dim) != (self.name, self.token_dim):
            raise ConfigError(
                f"{where}: a codebook of {found.name} for tokens of {found.token_dim} numbers, "
                f"where one of {self.name} for {self.token_dim} is needed; fit one to these tokens"
            )
        return replace(self, codebook=found.codebook, adapter_hash=found.adapter_hash)

    def encode(self, tokens: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Encode `(n, m, d_text)` float16 as `(n, nbytes)` uint8, each image independently.

        Raises:
            ConfigError: Shape or dtype are wrong, a number is not finite, or the codec is not
                fitted.
        """
        check_shape(tokens, self.num_tokens, self.token_dim)
        check_finite(tokens, self.name)
        book = self._fitted()
        whole = book.whole.astype(np.float32)
        codes = np.empty((len(tokens), self.num_tokens, self.token_bytes), np.uint8)
        for image, row in zip(tokens.astype(np.float32), codes, strict=True):
            row[:, 0] = _nearest(image[None], book.whole[None])[0]
            pieces = self._cut(image - whole[row[:, 0]])
            row[:, 1:] = _nearest(pieces, book.pieces).T
        return codes.reshape(len(tokens), self.nbytes)

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Decode `(n, nbytes)` uint8 to `(n, m, d_text)` float16.

        Raises:
            ConfigError: The codec is not fitted.
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
        # Summed in float32 and rounded once: equal results on all devices.
        tokens += book.whole.astype(np.float32).take(rows[:, 0], axis=0)
        return _to_float16(tokens).reshape(len(codes), self.num_tokens, self.token_dim)

    @property
    def wide_pieces(self) -> int:
        """Return the number of leading pieces that are one number wider than the others."""
        count = self.token_bytes - 1
        return self.token_dim - count * (self._width - 1)

    @property
    def _width(self) -> int:
        return -(-self.token_dim // (self.token_bytes - 1))

    def _cut(self, rest: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cut `(k, d_text)` into pieces `(M - 1, k, width)`; narrow pieces end with a 0."""
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
    """Return the index of the nearest of `(p, 256, w)` for each of `(p, k, w)`: `(p, k)`."""
    exact = centroids.astype(np.float32)
    half_norms = (exact**2).sum(axis=2)[:, None] / 2  # (p, 1, 256)
    # |x - c|^2 is minimal where x c - |c|^2 / 2 is maximal.
    nearest: NDArray[np.intp] = (vectors @ exact.transpose(0, 2, 1) - half_norms).argmax(axis=2)
    return nearest


def _to_float16(numbers: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round to float16, clipped to its largest number."""
    return np.clip(numbers, -_LARGEST, _LARGEST).astype(np.float16)


def _k_means(vectors: NDArray[np.float32], pieces: int, seed: int) -> NDArray[np.float32]:
    """Cut `(k, pieces * width)` vectors into pieces; return `(pieces, 256, width)` centroids."""
    try:
        with warnings.catch_warnings():
            # Raised by the bindings' own types, on import, in later Pythons.
            warnings.simplefilter("ignore", DeprecationWarning)
            import faiss
    except ImportError as error:
        raise MissingExtraError("faiss-cpu", "faiss") from error

    quantizer = faiss.ProductQuantizer(vectors.shape[1], pieces, 8)
    quantizer.cp.seed = seed
    # Otherwise faiss warns below 39 vectors per centroid, and draws a sample above 256.
    quantizer.cp.min_points_per_centroid = 1
    quantizer.cp.max_points_per_centroid = len(vectors)
    quantizer.train(vectors)
    centroids: NDArray[np.float32] = faiss.vector_to_array(quantizer.centroids)
    return centroids.reshape(pieces, _CENTROIDS, -1)
