"""What a folder of tokens says about itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import StoreError, TokensCorruptError, TokensNotFoundError
from edje_qdrant.files import os_errors_as_store_errors, write_atomically

__all__ = ["FORMAT", "MAGIC", "MANIFEST_NAME", "Manifest", "Segment", "another_stores"]

#: What manifests and segments call themselves, and the version of their layout.
MAGIC = "edje-qdrant tokens"
FORMAT = 1

#: The manifest's file name.
MANIFEST_NAME = "tokens.json"


@dataclass(frozen=True, slots=True)
class Segment:
    """Describe one file of records.

    Attributes:
        id: 8 hexadecimal digits, drawn at random; references carry it.
        codec: Key of the codec its records are encoded with.
        record_bytes: Bytes of a record.
        num_records: Records that were on the disk at the last flush.
    """

    id: str
    codec: str
    record_bytes: int
    num_records: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """State what a store holds; it is replaced whole at each flush.

    Attributes:
        store_id: 32 hexadecimal digits, drawn at random when the store was made.
        segment_bytes: Size past which no segment grows.
        contract: What wrote the store; its codec is the one that new records are encoded with.
        segments: Its files; the last is appended to.
    """

    store_id: str
    segment_bytes: int
    contract: TokenContract
    segments: tuple[Segment, ...] = ()

    def write(self, folder: Path) -> None:
        """Put this manifest into the folder, atomically.

        Raises:
            StoreError: It cannot be written.
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
            TokensNotFoundError: There is none.
            TokensCorruptError: It is damaged: a byte differs from what was written.
            StoreError: It cannot be read, or another version wrote it.
        """
        path = folder / MANIFEST_NAME
        try:
            with os_errors_as_store_errors("read", path):
                text = path.read_bytes()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise TokensNotFoundError(
                    f"no token store at {folder}; if it was moved, say where with tokens_folder, "
                    "if its manifest was lost, run `edje-qdrant repair`"
                ) from error
            raise
        damaged = (
            f"{path} is damaged; `edje-qdrant repair` writes it anew from the files beside it, "
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
        # Every byte is accounted for: what was read, written again, is what was read.
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
    """Return the error to raise where a folder holds another collection's store."""
    return TokensCorruptError(
        f"the token store at {folder} belongs to another collection; put this collection's own "
        "back, or say where it is with tokens_folder"
    )


def _sealed(data: dict[str, Any]) -> bytes:
    """Return the document with a checksum of itself at its end."""
    checksum = xxhash.xxh3_64_hexdigest(json.dumps(data).encode())
    return json.dumps({**data, "checksum": checksum}, indent=1).encode()
