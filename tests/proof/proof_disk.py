"""What a power cut would leave of a collection, at worst."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from proof_world import copy_folder


class Disk:
    """Know what has been put on the disk, and lose the rest.

    Of a collection's own files (side files, manifest, codebooks, `index.json`) that is, for each
    name that the folder held when the folder was last put on the disk, what was in the file when
    the file was. Of the engine's it is what was there when the engine was last flushed; the engine
    promises no such thing of a power cut, but nothing here may count on more.

    Args:
        collection: The folder of a collection, if there is one.
        power: What is lost: `"ours"` (the engine being ahead), `"engine"` (which is behind then),
            `"both"`, or None.
    """

    def __init__(self, collection: Path | None, power: str | None) -> None:
        self._names: dict[Path, dict[str, int]] = {}
        self._contents: dict[int, bytes] = {}
        self._shard: Path | None = None
        self._flushed: Path | None = None
        if collection is None:
            return
        if power in ("ours", "both"):
            for folder in (collection, collection / "tokens"):
                if folder.exists():
                    for path in _files(folder):
                        self._contents[path.stat().st_ino] = path.read_bytes()
                    self._note(folder)
        if power in ("engine", "both"):
            self._shard = collection / "shard"
            self.flushed()

    def synced(self, path: Path) -> None:
        """Note that a file or a folder has been put on the disk."""
        if path in self._names:
            self._note(path)
        elif path.parent in self._names:
            self._contents[path.stat().st_ino] = path.read_bytes()

    def flushed(self) -> None:
        """Note that the engine has been flushed."""
        if self._shard is not None:
            if self._flushed is not None:
                shutil.rmtree(self._flushed)
            around = Path(tempfile.mkdtemp(dir=self._shard.parent.parent, prefix=".kept"))
            self._flushed = copy_folder(self._shard, around / "shard")

    def lose(self) -> None:
        """Leave nothing but what is on the disk."""
        for folder, names in self._names.items():
            for path in _files(folder):
                if path.name not in names:
                    os.unlink(path)
            for name, inode in names.items():
                with open(folder / name, "wb") as file:  # `Path.open` may be one that dies
                    file.write(self._contents[inode])
        if self._shard is not None and self._flushed is not None:
            shutil.rmtree(self._shard)
            os.rename(self._flushed, self._shard)

    def _note(self, folder: Path) -> None:
        self._names[folder] = {path.name: path.stat().st_ino for path in _files(folder)}
        for inode in self._names[folder].values():
            self._contents.setdefault(inode, b"")  # never put on the disk itself


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and path.suffix != ".lock"]
