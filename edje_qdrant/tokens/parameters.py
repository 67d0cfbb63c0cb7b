"""A fitted codec's parameters as bytes: a safetensors file that says what it is for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from edje_qdrant.errors import TokensCorruptError

__all__ = ["Parameters", "codebook_hash", "pack", "unpack"]

_FORMAT = "edje-qdrant codec 1"
_TENSOR = "codebook"


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """Hold what a file of parameters says.

    Attributes:
        name: The codec's.
        token_dim: Width of the tokens it was fitted to.
        codebook: `(M, 256, width)` float16, finite.
        adapter_hash: Of the adapter that made those tokens; `""` where that is not known.
    """

    name: str
    token_dim: int
    codebook: NDArray[np.float16]
    adapter_hash: str = ""


def codebook_hash(codebook: NDArray[np.float16]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a codebook's little-endian bytes."""
    return hashlib.sha256(_bytes(codebook)).hexdigest()[:16]


def pack(parameters: Parameters) -> bytes:
    """Turn parameters into safetensors bytes; the same parameters give the same bytes."""
    data = _bytes(parameters.codebook)
    metadata = {
        "format": _FORMAT,
        "name": parameters.name,
        "token_dim": str(parameters.token_dim),
        "hash": codebook_hash(parameters.codebook),
    }
    if parameters.adapter_hash:
        metadata["adapter_hash"] = parameters.adapter_hash
    # Written by hand, as the library puts metadata in another order each time.
    header = json.dumps(
        {
            "__metadata__": metadata,
            _TENSOR: {
                "dtype": "F16",
                "shape": parameters.codebook.shape,
                "data_offsets": [0, len(data)],
            },
        },
        separators=(",", ":"),
    ).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def unpack(data: bytes, *, where: str) -> Parameters:
    """Read parameters back.

    Args:
        data: What `pack` returned.
        where: What errors call it.

    Raises:
        TokensCorruptError: The bytes are damaged, cut off or something else's.
    """
    try:
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if metadata["format"] != _FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}, not {_FORMAT!r}")
        codebook = load(data)[_TENSOR]
        name, token_dim = metadata["name"], int(metadata["token_dim"])
        if codebook.dtype != np.float16 or codebook_hash(codebook) != metadata["hash"]:
            raise ValueError("its hash is another")
        pieces, *size = codebook.shape
        if name != f"pq{pieces}" or size != [256, -(-token_dim // pieces)]:
            raise ValueError(f"{name} of shape {codebook.shape} for {token_dim} numbers")
        if not np.isfinite(codebook).all():
            raise ValueError("it holds infinite values or NaN")
        return Parameters(name, token_dim, codebook, metadata.get("adapter_hash", ""))
    except (SafetensorError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise TokensCorruptError(
            f"{where}: damaged, or no codec that this version can read ({error}); restore it from "
            "a copy, or fit a new one"
        ) from error


def _bytes(codebook: NDArray[np.float16]) -> bytes:
    return np.ascontiguousarray(codebook, dtype="<f2").tobytes()
