"""Tokens as product-quantization codes: a few bytes a token, and a codebook for all of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError, MissingExtraError
from edje_qdrant.tokens.checks import check_finite, check_shape
from edje_qdrant.tokens.parameters import Parameters, codebook_hash, pack, unpack

__all__ = ["ProductCodec"]

_LARGEST = float(np.finfo(np.float16).max)
_CENTROIDS = 256
# More vectors than this make training slower and the codebook hardly better.
_SAMPLE = 256 * _CENTROIDS


@dataclass(frozen=True, slots=True, eq=False)
class ProductCodec:
    """Keep each token as `M` bytes: the nearest of 256 pieces for each `M`-th of it.

    A picture's record is `m * M` bytes, token after token. A token whose width is no multiple of
    `M` is padded with zeros. The pieces are the codebook, which `fit` makes with k-means (faiss);
    encoding and decoding need numpy alone. Codes mean nothing without their codebook.

    Attributes:
        num_tokens: Tokens a picture, `m`.
        token_dim: Width of a token, `d_text`.
        token_bytes: Bytes a token, `M`.
        codebook: `(M, 256, width)` float16; nothing before the codec is fitted.
        adapter_hash: Of the adapter whose tokens it was fitted to; `""` where that is not known.
        hash: 16 hexadecimal digits that name the codebook; `""` before the codec is fitted.

    Source: Jégou, Douze, Schmid: Product Quantization for Nearest Neighbor Search (2011).
    """

    num_tokens: int
    token_dim: int
    token_bytes: int
    codebook: NDArray[np.float16] | None = field(default=None, repr=False)
    adapter_hash: str = ""
    hash: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if self.codebook is not None:
            object.__setattr__(self, "hash", codebook_hash(self.codebook))

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
        """Return the bytes one picture takes."""
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
            tokens: `(n, m, d_text)` float16, of pictures like those to be stored.
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
                f"{self.name} is fitted to {_CENTROIDS} tokens or more, and {len(tokens)} pictures "
                f"have {len(vectors)}; give {-(-_CENTROIDS // self.num_tokens)} pictures or more, "
                "a few thousand if you can"
            )
        if len(vectors) > _SAMPLE:
            rows = np.random.default_rng(seed).choice(len(vectors), _SAMPLE, replace=False)
            vectors = vectors[np.sort(rows)]
        check_finite(vectors, self.name)
        centroids = _k_means(self._padded(vectors), self.token_bytes, seed)
        codebook = np.clip(centroids, -_LARGEST, _LARGEST).astype(np.float16)
        return replace(self, codebook=codebook, adapter_hash="")

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

        A picture's codes do not depend on which others come with it.

        Raises:
            ConfigError: The tokens have another shape or dtype, or are not all finite, or the codec
                has no codebook.
        """
        check_shape(tokens, self.num_tokens, self.token_dim)
        check_finite(tokens, self.name)
        centroids = self._fitted().astype(np.float32).transpose(0, 2, 1)  # (M, width, 256)
        halves = (centroids**2).sum(axis=1, keepdims=True) / 2  # (M, 1, 256)
        codes = np.empty((len(tokens), self.num_tokens, self.token_bytes), np.uint8)
        for picture, row in zip(tokens, codes, strict=True):
            pieces = self._padded(picture).reshape(self.num_tokens, self.token_bytes, -1)
            # |x - c|^2 is least where x c - |c|^2 / 2 is largest.
            closeness = pieces.transpose(1, 0, 2) @ centroids - halves  # (M, m, 256)
            row[:] = closeness.argmax(axis=2).T
        return codes.reshape(len(tokens), self.nbytes)

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Turn `(n, nbytes)` uint8 into `(n, m, d_text)` float16.

        Raises:
            ConfigError: The codec has no codebook.
        """
        codebook = self._fitted()
        rows = codes.reshape(-1, self.token_bytes) + np.arange(
            0, self.token_bytes * _CENTROIDS, _CENTROIDS
        )  # (n * m, M)
        pieces = codebook.reshape(-1, self._width).take(rows, axis=0)  # (n * m, M, width)
        tokens = pieces.reshape(len(codes), self.num_tokens, self.token_bytes * self._width)
        return np.ascontiguousarray(tokens[..., : self.token_dim])

    @property
    def _width(self) -> int:
        return -(-self.token_dim // self.token_bytes)

    def _padded(self, vectors: NDArray[np.float16]) -> NDArray[np.float32]:
        """Return `(k, d_text)` as float32, each with zeros up to a multiple of `M`."""
        padding = self.token_bytes * self._width - self.token_dim
        return np.pad(vectors.astype(np.float32), ((0, 0), (0, padding)))

    def _fitted(self) -> NDArray[np.float16]:
        if self.codebook is None:
            raise ConfigError(
                f"{self.name} has no codebook yet: fit one with `edje-qdrant fit-codec` or "
                f"codec_for({self.name!r}, ...).fit(tokens); `edje-qdrant ingest` fits one to a "
                "sample of the source"
            )
        return self.codebook


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
