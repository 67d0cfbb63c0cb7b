"""Serialisation of a fitted codec's parameters as safetensors, with metadata."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from edje_qdrant.errors import TokensCorruptError

__all__ = ["Codebook", "Parameters", "pack", "unpack"]

_FORMAT = "edje-qdrant codec 1"


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """Hold the tables of a codec with `M` bytes per token.

    Attributes:
        whole: `(256, d_text)` float16, finite.
        pieces: `(M - 1, 256, width)` float16, finite; narrower pieces end with a 0.
    """

    whole: NDArray[np.float16]
    pieces: NDArray[np.float16]

    @property
    def hash(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 of both tables' little-endian bytes."""
        return hashlib.sha256(_bytes(self.whole) + _bytes(self.pieces)).hexdigest()[:16]


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """Hold the content of a file of parameters.

    Attributes:
        name: Name of the codec.
        token_dim: Width of the tokens it was fitted to.
        codebook: The tables.
        adapter_hash: Of the adapter that computed those tokens; `""` if unknown.
    """

    name: str
    token_dim: int
    codebook: Codebook
    adapter_hash: str = ""


def pack(parameters: Parameters) -> bytes:
    """Serialise parameters as safetensors bytes; equal parameters give equal bytes."""
    tables = {"whole": parameters.codebook.whole, "pieces": parameters.codebook.pieces}
    metadata = {
        "format": _FORMAT,
        "name": parameters.name,
        "token_dim": str(parameters.token_dim),
        "hash": parameters.codebook.hash,
    }
    if parameters.adapter_hash:
        metadata["adapter_hash"] = parameters.adapter_hash
    # Written without the library, whose order of metadata differs from call to call.
    entries: dict[str, Any] = {"__metadata__": metadata}
    data = b""
    for name, table in tables.items():
        offsets = [len(data), len(data) + table.size * 2]
        entries[name] = {"dtype": "F16", "shape": table.shape, "data_offsets": offsets}
        data += _bytes(table)
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def unpack(data: bytes, *, where: str) -> Parameters:
    """Deserialise parameters.

    Args:
        data: Bytes that `pack` returned.
        where: Name of the source in error messages.

    Raises:
        TokensCorruptError: The bytes are damaged, truncated or of another kind.
    """
    try:
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if metadata["format"] != _FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}, not {_FORMAT!r}")
        tensors = load(data)
        codebook = Codebook(tensors["whole"], tensors["pieces"])
        name, token_dim = metadata["name"], int(metadata["token_dim"])
        for table in (codebook.whole, codebook.pieces):
            if table.dtype != np.float16 or not np.isfinite(table).all():
                raise ValueError("it holds infinite values or NaN, or numbers that are not float16")
        if codebook.hash != metadata["hash"]:
            raise ValueError("its hash differs")
        count, *size = codebook.pieces.shape
        if (
            name != f"pq{count + 1}"
            or size != [256, -(-token_dim // count)]
            or codebook.whole.shape != (256, token_dim)
        ):
            raise ValueError(f"its tables do not fit {name} for {token_dim} numbers")
        return Parameters(name, token_dim, codebook, metadata.get("adapter_hash", ""))
    except (SafetensorError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise TokensCorruptError(
            f"{where}: damaged, or not a codec that this version can read ({error}); restore it "
            "from a copy, or fit a new one"
        ) from error


def _bytes(codebook: NDArray[np.float16]) -> bytes:
    return np.ascontiguousarray(codebook, dtype="<f2").tobytes()
