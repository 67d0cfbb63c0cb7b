"""What a folder of tokens says about itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edje_qdrant.contract import TokenContract
from edje_qdrant.durable import os_errors_as_store_errors, write_atomically
from edje_qdrant.errors import StoreError, TokensCorruptError, TokensNotFoundError

__all__ = ["HEADER_BYTES", "MANIFEST_NAME", "Manifest"]

_MAGIC = "edje-qdrant tokens"
_FORMAT = 1

#: The manifest's file name.
MANIFEST_NAME = "tokens.json"

#: A page, so that records whose size is a multiple of it begin on one.
HEADER_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Manifest:
    """State what a side file holds; it is replaced whole at each flush.

    Attributes:
        store_id: 32 hexadecimal digits, drawn at random when the side file was made.
        record_bytes: Bytes of a record.
        num_records: Records that were on the disk at the last flush.
        contract: What wrote them.
    """

    store_id: str
    record_bytes: int
    num_records: int
    contract: TokenContract

    @property
    def short_id(self) -> str:
        """Return the eight digits that references carry."""
        return self.store_id[:8]

    @property
    def side_file(self) -> str:
        """Return the side file's name."""
        return f"tokens-{self.short_id}.bin"

    @property
    def header(self) -> bytes:
        """Return the bytes a side file of this manifest begins with."""
        text = json.dumps(
            {
                "magic": _MAGIC,
                "format": _FORMAT,
                "store_id": self.store_id,
                "record_bytes": self.record_bytes,
            }
        )
        return text.encode().ljust(HEADER_BYTES - 1) + b"\n"

    def write(self, folder: Path) -> None:
        """Put this manifest into the folder, atomically.

        Raises:
            StoreError: It cannot be written.
        """
        data = {
            "magic": _MAGIC,
            "format": _FORMAT,
            "store_id": self.store_id,
            "record_bytes": self.record_bytes,
            "num_records": self.num_records,
            "contract": self.contract.as_dict(),
        }
        with os_errors_as_store_errors("write the token manifest in", folder):
            write_atomically(folder / MANIFEST_NAME, json.dumps(data, indent=2).encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the folder's manifest.

        Raises:
            TokensNotFoundError: There is none.
            TokensCorruptError: It is damaged.
            StoreError: It cannot be read, or another version wrote it.
        """
        path = folder / MANIFEST_NAME
        try:
            with os_errors_as_store_errors("read", path):
                text = path.read_bytes()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise TokensNotFoundError(
                    f"no token store at {folder}; if it was moved, say where with tokens_folder"
                ) from error
            raise
        try:
            data: dict[str, Any] = json.loads(text)
            magic, version = data["magic"], data["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise TokensCorruptError(
                f"{path} is damaged; restore the folder from a copy"
            ) from error
        if magic != _MAGIC or version != _FORMAT:
            raise StoreError(
                f"{path} has format {version!r} of {magic!r}, this version reads format {_FORMAT} "
                f"of {_MAGIC!r}; use the version of the package that wrote it"
            )
        try:
            return cls(
                store_id=str(data["store_id"]),
                record_bytes=int(data["record_bytes"]),
                num_records=int(data["num_records"]),
                contract=TokenContract.from_dict(data["contract"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise TokensCorruptError(
                f"{path} is damaged; restore the folder from a copy"
            ) from error
