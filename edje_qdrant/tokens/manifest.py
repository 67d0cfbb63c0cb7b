"""Manifest of a folder of side files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import StoreError, TokensCorruptError, TokensNotFoundError
from edje_qdrant.files import os_errors_as_store_errors, read_if_exists, write_atomically

__all__ = ["FORMAT", "MAGIC", "MANIFEST_NAME", "Manifest", "Segment", "another_stores"]

#: Identifier of manifests and segments, and the version of their layout.
MAGIC = "edje-qdrant tokens"
FORMAT = 1

#: The manifest's file name.
MANIFEST_NAME = "tokens.json"


@dataclass(frozen=True, slots=True)
class Segment:
    """Describe one file of records.

    Attributes:
        id: 8 random hexadecimal digits; references contain it.
        codec: Key of the codec of its records.
        record_bytes: Size of a record in bytes.
        num_records: Number of records on the disk at the last flush.
    """

    id: str
    codec: str
    record_bytes: int
    num_records: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """Describe the content of a store; replaced atomically at each flush.

    Attributes:
        store_id: 32 random hexadecimal digits, drawn when the store was created.
        segment_bytes: Maximum size of a segment.
        contract: Of the model that wrote the store; its codec encodes new records.
        segments: Files of the store; records are appended to the last one.
    """

    store_id: str
    segment_bytes: int
    contract: TokenContract
    segments: tuple[Segment, ...] = ()

    def write(self, folder: Path) -> None:
        """Write this manifest to the folder, atomically.

        Raises:
            StoreError: The manifest cannot be written.
        """
        data = {
            "magic": MAGIC,
            "format": FORMAT,
            "store_id": self.store_id,
            "segment_bytes": self.segment_bytes,
            "contract": self.contract.as_dict(),
            "segments": [asdict(segment) for segment in self.segments],
        }
        with os_errors_as_store_errors("write the token manifest in", folder):
            write_atomically(folder / MANIFEST_NAME, _sealed(data))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the folder's manifest.

        Raises:
            TokensNotFoundError: There is no manifest.
            TokensCorruptError: The manifest is damaged: a byte differs from those written.
            StoreError: The manifest cannot be read, or another version wrote it.
        """
        path = folder / MANIFEST_NAME
        text = read_if_exists(path, "read")
        if text is None:
            raise TokensNotFoundError(
                f"no token store at {folder}; if it was moved, pass its folder as tokens_folder, "
                "if its manifest was lost, run `edje-qdrant repair`"
            )
        damaged = (
            f"{path} is damaged; rebuild it from the files beside it with `edje-qdrant repair`, "
            "or restore the folder from a copy"
        )
        try:
            data: dict[str, Any] = json.loads(text)
            magic, version = data["magic"], data["format"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TokensCorruptError(damaged) from error
        if magic != MAGIC or version != FORMAT:
            raise StoreError(
                f"{path} has format {version!r} of {magic!r}, this version reads format {FORMAT} "
                f"of {MAGIC!r}; use the version of the package that wrote it"
            )
        # Serialise the data again and compare: this detects any changed byte.
        data.pop("checksum", None)
        if _sealed(data) != text:
            raise TokensCorruptError(damaged)
        try:
            return cls(
                store_id=str(data["store_id"]),
                segment_bytes=int(data["segment_bytes"]),
                contract=TokenContract.from_dict(data["contract"]),
                segments=tuple(Segment(**segment) for segment in data["segments"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise TokensCorruptError(damaged) from error


def another_stores(folder: Path) -> TokensCorruptError:
    """Return the error for a folder that contains another collection's store."""
    return TokensCorruptError(
        f"the token store at {folder} belongs to another collection; restore this collection's "
        "store, or pass its folder as tokens_folder"
    )


def _sealed(data: dict[str, Any]) -> bytes:
    """Serialise the data, with its own checksum at the end."""
    checksum = xxhash.xxh3_64_hexdigest(json.dumps(data).encode())
    return json.dumps({**data, "checksum": checksum}, indent=1).encode()
