"""Uncompressed tar files whose members are read one by one."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import IO

from edje_qdrant.errors import ConfigError

__all__ = ["BLOCK", "TarMember", "open_tar"]

#: Bytes of a header, and of what the members are padded to.
BLOCK = 512

_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\x00": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file within a tar file: its name, the place of its bytes and their number."""

    name: str
    offset: int
    size: int


def open_tar(file: IO[bytes], name: str) -> tarfile.TarFile:
    """Open an uncompressed tar file; the caller closes it.

    Args:
        file: The file, at its start.
        name: Its name, for messages.

    Raises:
        ConfigError: It is compressed, or no tar file.
        OSError: It cannot be read.
    """
    start = file.read(8)
    for magic, tool in _COMPRESSED.items():
        if start.startswith(magic):
            raise ConfigError(
                f"{name} is compressed, and members of a compressed tar cannot be read one by "
                f"one; decompress it with {tool}, and use the .tar"
            )
    file.seek(0)
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except tarfile.TarError as error:
        raise ConfigError(f"{name} is not a tar file: {error}") from error
