"""Images and captions of WebDataset shards: uncompressed tar files with random access."""

from __future__ import annotations

import glob
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from edje_qdrant.data.caption_filter import captions_of
from edje_qdrant.data.tar_files import BLOCK, TarMember, open_tar
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import MAX_PIXELS, error_reason, open_upright
from edje_qdrant.types import FailedImage

__all__ = ["TarPairs", "expand_braces", "expand_shards"]

_IMAGES = ("jpg", "jpeg", "png", "webp")
# WebDataset's rule: a sample's members share their path up to the first dot of the file name.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LIST = re.compile(r"\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True, slots=True)
class _Sample:
    """One image within a shard, and its captions."""

    shard: str
    key: str
    image: TarMember
    captions: tuple[str, ...]


class TarPairs:
    """Read WebDataset shards, in any order of rows.

    Members that share their name up to the first dot are one sample. Its image is the `.jpg`,
    `.jpeg`, `.png` or `.webp`; its captions are the `.txt`, or the field `caption` of the `.json`,
    a text or a list of texts. Headers and captions are read once, when the shards are opened.

    Args:
        paths: A path, a glob or a brace pattern (`shard-{000..009}.tar`), or several of these.
        max_pixels: Larger images are refused.

    Attributes:
        name: For messages and logs.
        skipped: Samples without image or caption, and damaged shards.

    Raises:
        ConfigError: A shard is missing, compressed or not a tar file, or there is no sample.
    """

    def __init__(
        self, paths: str | Path | Sequence[str | Path], *, max_pixels: int = MAX_PIXELS
    ) -> None:
        given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self.name = ", ".join(f"{path}" for path in given)
        self._shards = expand_shards(given)
        self._max_pixels = max_pixels
        self._samples: list[_Sample] = []
        skipped: list[FailedImage] = []
        for shard in self._shards:
            for item in _index(shard):
                if isinstance(item, _Sample):
                    self._samples.append(item)
                else:
                    skipped.append(item)
        self.skipped = tuple(skipped)
        if not self._samples:
            why = f"; the first of {len(skipped)} skipped: {skipped[0].reason}" if skipped else ""
            raise ConfigError(f"no image with a caption in {self.name}{why}")

    def __len__(self) -> int:
        return len(self._samples)

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of the shards' paths, sizes and times, and of the images' positions."""
        digest = blake2b(digest_size=16)
        for shard in self._shards:
            status = os.stat(shard)
            digest.update(repr((shard, status.st_size, status.st_mtime_ns)).encode())
        for sample in self._samples:
            place = (sample.key, sample.image.offset, sample.image.size)
            digest.update(repr(place).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def captions(self, row: int) -> tuple[str, ...]:
        """Return the image's captions."""
        return self._samples[row].captions

    def key(self, row: int) -> str:
        """Return the shard's path and the sample's key."""
        return f"{self._samples[row].shard}:{self._samples[row].key}"

    def open(self, row: int) -> Image.Image:
        """Return the image upright and in RGB; each call opens the shard again.

        Raises:
            ImageReadError: It cannot be read.
        """
        sample = self._samples[row]
        where = f"{sample.shard}:{sample.image.name}"
        try:
            with open(sample.shard, "rb") as file:
                data = _read(file, sample.image)
        except OSError as error:
            raise ImageReadError(where, error_reason(error)) from error
        return open_upright(io.BytesIO(data), where, max_pixels=self._max_pixels)


def expand_shards(patterns: Sequence[str | Path]) -> list[str]:
    """Return the absolute paths of the shards that paths, globs and brace patterns name.

    Raises:
        ConfigError: A path does not exist, or a pattern matches none.
    """
    shards = []
    for pattern in patterns:
        for path in expand_braces(os.fspath(pattern)):
            found = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
            missing = [shard for shard in found or [path] if not os.path.isfile(shard)]
            if missing:
                raise ConfigError(f"there is no file {missing[0]}; check {pattern}")
            shards += [os.path.abspath(shard) for shard in found]
    return list(dict.fromkeys(shards))


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield the names that a brace pattern stands for: `{000..009}`, `{a,b}`."""
    if match := _RANGE.search(pattern):
        first, last = match.groups()
        filled = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    elif match := _LIST.search(pattern):
        filled = match[1].split(",")
    else:
        yield pattern
        return
    for part in filled:
        yield from expand_braces(pattern[: match.start()] + part + pattern[match.end() :])


def _index(shard: str) -> Iterator[_Sample | FailedImage]:
    """Yield a shard's samples and failures, in the order in which samples begin."""
    samples: dict[str, dict[str, TarMember]] = {}
    damage = None
    try:
        with open(shard, "rb") as file:
            damage = _members(shard, file, samples)
            for key, members in samples.items():
                yield _sample(shard, key, members, file)
    except OSError as error:
        raise ConfigError(f"cannot read the shard {shard}: {error_reason(error)}") from error
    if damage is not None:
        yield FailedImage(shard, f"damaged; the samples after the damage are lost: {damage}")


def _members(shard: str, file: BinaryIO, samples: dict[str, dict[str, TarMember]]) -> str | None:
    """Collect a shard's members by sample; return the damage that ended it early, if any."""
    size = os.fstat(file.fileno()).st_size
    with open_tar(file, shard) as tar:
        try:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps all of them
                match = _MEMBER.fullmatch(member.name)
                if match is None or not member.isreg() or member.issparse():
                    continue
                key, suffix = match[1], match[2].lower()
                if member.offset_data + member.size > size:
                    return f"the file ends within {member.name}"
                place = TarMember(member.name, member.offset_data, member.size)
                samples.setdefault(key, {})[suffix] = place
            file.seek(tar.offset)
        except tarfile.TarError as error:
            return str(error)
    # tarfile treats a broken header as the end of the file.
    return "a broken header" if file.read(BLOCK).strip(b"\0") else None


def _sample(
    shard: str, key: str, members: dict[str, TarMember], file: BinaryIO
) -> _Sample | FailedImage:
    where = f"{shard}:{key}"
    image = next((members[suffix] for suffix in _IMAGES if suffix in members), None)
    if image is None:
        return FailedImage(where, f"no image among its members ({', '.join(members)})")
    captions: tuple[str, ...] = ()
    try:
        if "txt" in members:
            captions = captions_of(_read(file, members["txt"]).decode("utf-8-sig"))
        if not captions and "json" in members:
            fields = json.loads(_read(file, members["json"]).decode("utf-8-sig"))
            captions = captions_of(fields.get("caption") if isinstance(fields, dict) else None)
    except (ValueError, RecursionError) as error:
        return FailedImage(where, f"its caption cannot be read: {error_reason(error)}")
    if not captions:
        return FailedImage(where, 'no caption: neither a .txt nor a "caption" in a .json')
    return _Sample(shard, key, image, captions)


def _read(file: BinaryIO, member: TarMember) -> bytes:
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) < member.size:
        raise OSError("the shard is shorter than it was when it was opened")
    return data
