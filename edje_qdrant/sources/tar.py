"""Images in tar files, such as the shards of WebDataset."""

from __future__ import annotations

import json
import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import IO, Any

from edje_qdrant.data.tar_files import BLOCK, TarMember, open_tar
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import MAX_FILE_BYTES, error_reason
from edje_qdrant.index import TOKENS_KEY, json_integer
from edje_qdrant.sources.folder import IMAGE_SUFFIXES
from edje_qdrant.sources.protocol import Fetched, ImageSource, ListedImage, Listing
from edje_qdrant.sources.remote import RemoteFile, about, fetch
from edje_qdrant.sources.remote_store import too_large
from edje_qdrant.sources.stamp import file_stamp
from edje_qdrant.sources.uris import is_uri_of_image, part_path, suffix_of
from edje_qdrant.types import FailedImage

__all__ = ["TAR_SUFFIXES", "TarSource", "read_member"]

#: Files that are read as tar files.
TAR_SUFFIXES = frozenset({".tar"})

# Sidecars: of an image with the same name up to the first dot.
_JSON, _TEXT = "json", "txt"
_LARGEST_SIDECAR = 4 << 20
# Tar files whose members' places are kept, for reading one member after the other.
_KEPT = 4


class _Member(TarMember):
    """A file within a tar file, by WebDataset's rule of names."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """Return the name up to the first dot of the file's own name, as WebDataset does."""
        folder, _, file = self.name.rpartition("/")
        return f"{folder}/{file.partition('.')[0]}"

    @property
    def kind(self) -> str:
        """Return what follows that dot, in small letters."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


class TarSource(ImageSource):
    """The images in tar files, one file after the other, in the order of their members.

    Members that follow each other and have the same name up to the first dot belong together: the
    fields of a `.json`, and the `caption` of a `.txt`, become fields of the image. Hidden members
    are left out. Members are read where they are; of a remote file, only its headers and the
    images that are not stored yet.

    Args:
        shards: Paths or addresses of the tar files.
    """

    def __init__(self, shards: list[str]) -> None:
        self._shards = [
            shard if is_uri_of_image(shard) else os.path.abspath(shard) for shard in shards
        ]
        more = f" and {len(shards) - 1} more" if len(shards) > 1 else ""
        self.name = f"{shards[0]}{more}"
        self.scope = tuple(f"{shard}#" for shard in self._shards)

    def images(self) -> Listing:
        """List the images; a damaged tar file is listed as failed, after what is before that."""
        for shard in self._shards:
            try:
                yield from _images(shard)
            except ImageReadError as error:  # noqa: PERF203 - the other files are read
                yield FailedImage(shard, error.reason)

    def count(self) -> int | None:
        """Return the number of images; None for remote files, whose headers would be read twice."""
        if any(map(is_uri_of_image, self._shards)):
            return None
        return sum(1 for _ in self.images())


def read_member(shard: str, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the bytes of a member; of several with one name the last, as tar does.

    Raises:
        ImageReadError: It cannot be read, or there is none of this name.
    """
    path = part_path(shard, member=name)
    found = _places(shard).get(name)
    if found is None:
        raise ImageReadError(path, f"{shard} has no member {name}")
    return _read(shard, path, *found, max_bytes=max_bytes).content


def _images(shard: str) -> Listing:
    """List the images of one tar file.

    Raises:
        ImageReadError: It cannot be read, or is damaged.
    """
    stamp = about(shard).stamp if is_uri_of_image(shard) else file_stamp(shard)
    with _opened(shard) as file:
        sample: list[_Member] = []
        sidecars: dict[str, bytes] = {}
        damage: ImageReadError | None = None
        try:
            for member in _members(shard, file):
                if sample and member.key != sample[0].key:
                    yield from _sample(shard, stamp, sample, sidecars)
                    sample, sidecars = [], {}
                sample.append(member)
                if member.kind in (_JSON, _TEXT) and member.size <= _LARGEST_SIDECAR:
                    file.seek(member.offset)
                    sidecars[member.kind] = file.read(member.size)
        except ImageReadError as error:
            damage = error
        yield from _sample(shard, stamp, sample, sidecars)
        if damage is not None:
            raise damage


def _sample(
    shard: str, stamp: Mapping[str, Any], members: list[_Member], sidecars: Mapping[str, bytes]
) -> Listing:
    """Return the images among members that belong together."""
    images = [member for member in members if f".{member.kind}" in IMAGE_SUFFIXES]
    if not images:  # a mask, as in 1.jpg and 1.seg.png, is no image of its own
        images = [member for member in members if suffix_of(member.name) in IMAGE_SUFFIXES]
    if not images:
        return
    fields: Mapping[str, Any] | None = None
    reason = ""
    try:
        fields = _fields(sidecars)
    except (ValueError, RecursionError) as error:
        reason = f"its .json or .txt cannot be read: {error_reason(error)}"
    for member in images:
        path = part_path(shard, member=member.name)
        if fields is None:
            yield FailedImage(path, reason)
        else:
            own = {**stamp, "file_size": member.size} if "file_size" in stamp else stamp
            read = partial(_read, shard, path, member.offset, member.size)
            yield ListedImage(path, fields, reader=read, stamp=own)


def _fields(sidecars: Mapping[str, bytes]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if _TEXT in sidecars:
        fields["caption"] = sidecars[_TEXT].decode("utf-8-sig").strip()
    if _JSON in sidecars:
        found = json.loads(sidecars[_JSON].decode("utf-8-sig"), parse_int=json_integer)
        if not isinstance(found, dict):
            raise ValueError("the .json is no object")
        if TOKENS_KEY in found:
            raise ValueError(f"the field {TOKENS_KEY!r} is reserved; rename it")
        fields.update(found)
    return fields


def _read(
    shard: str, path: str, offset: int, size: int, max_bytes: int = MAX_FILE_BYTES
) -> Fetched:
    if size > max_bytes:
        raise too_large(path, size, max_bytes)
    if size == 0:
        return Fetched(b"")
    if is_uri_of_image(shard):
        content, _ = fetch(shard, offset, offset + size)
    else:
        try:
            with open(shard, "rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise ImageReadError(path, error_reason(error)) from error
    if len(content) < size:
        raise ImageReadError(path, f"{shard} is shorter than it was when it was listed")
    return Fetched(content)


@contextmanager
def _opened(shard: str) -> Iterator[IO[bytes]]:
    if is_uri_of_image(shard):
        file, _ = RemoteFile.buffered(shard)
        with file:
            yield file
        return
    try:
        local = open(shard, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise ImageReadError(shard, error_reason(error)) from error
    with local:
        yield local


def _members(shard: str, file: IO[bytes]) -> Iterator[_Member]:
    """Yield the regular files in a tar file that are not hidden.

    Raises:
        ConfigError: It is compressed, or no tar file.
        ImageReadError: It is damaged, or cannot be read any further.
    """
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        with open_tar(file, shard) as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps all of them
                hidden = any(part.startswith((".", "__MACOSX")) for part in _parts(member.name))
                if not member.isreg() or member.issparse() or hidden:
                    continue
                if member.offset_data + member.size > size:
                    raise ImageReadError(shard, f"the file ends within {member.name}")
                yield _Member(member.name, member.offset_data, member.size)
            file.seek(tar.offset)
        if file.read(BLOCK).strip(b"\0"):  # tarfile takes a broken header for the file's end
            raise ImageReadError(shard, "damaged: a broken header; what follows it was not read")
    except tarfile.TarError as error:
        raise ImageReadError(shard, f"damaged: {error}; what follows was not read") from error
    except OSError as error:
        raise ImageReadError(shard, error_reason(error)) from error


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


_kept: OrderedDict[tuple[str, str], dict[str, tuple[int, int]]] = OrderedDict()
_kept_lock = threading.Lock()


def _places(shard: str) -> Mapping[str, tuple[int, int]]:
    """Return name -> offset and size of each member; kept for a few tar files that are unchanged.

    Raises:
        ImageReadError: It cannot be read.
    """
    stamp = about(shard).stamp if is_uri_of_image(shard) else file_stamp(shard)
    key = shard, repr(stamp)
    with _kept_lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    places: dict[str, tuple[int, int]] = {}
    try:
        with _opened(shard) as file:
            for member in _members(shard, file):
                places[member.name] = member.offset, member.size
    except ConfigError as error:
        raise ImageReadError(shard, str(error)) from error
    with _kept_lock:
        _kept[key] = places
        while len(_kept) > _KEPT:
            _kept.popitem(last=False)
    return places
