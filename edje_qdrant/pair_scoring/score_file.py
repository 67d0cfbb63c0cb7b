"""Files of a pair-scoring run: reading of pairs, and a score file that can be continued."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from edje_qdrant.data.annotations import iterate_annotations
from edje_qdrant.errors import CollectionLockedError, ConfigError, StoreError
from edje_qdrant.files import kind_of, lock_file, os_errors_as_store_errors, write_atomically

__all__ = [
    "Pair",
    "ScoreFile",
    "ScoredPair",
    "chunked",
    "header_path",
    "read_pairs",
    "survey",
]

_FORMAT = 1
# A chunk may grow to this many times its size, to keep the captions of an image together.
_STRETCH = 4


@dataclass(frozen=True, slots=True)
class Pair:
    """Hold an image's absolute path and one caption."""

    image: str
    caption: str


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Hold one line of the output.

    Attributes:
        image: Absolute path.
        caption: The caption, unchanged.
        score: The joint encoder's logit; None if there is an error.
        cosine: Cosine of the embeddings of image and caption; None if there is an error.
        keep: Whether the score reaches the threshold; None without a threshold.
        error: Why the pair could not be scored; None if it was.
    """

    image: str
    caption: str
    score: float | None
    cosine: float | None
    keep: bool | None
    error: str | None

    def line(self) -> bytes:
        """Return the line as bytes, including the line end."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> ScoredPair:
        """Parse a line.

        Raises:
            ValueError: It is not a line of the output.
        """
        try:
            pair = cls(**json.loads(line))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError("not a line of score-pairs") from error
        numbers = (pair.score, pair.cosine)
        if not all(number is None or isinstance(number, float) for number in numbers):
            raise ValueError("its score or cosine is not a number")
        return pair


def read_pairs(path: Path, images: str | Path | None) -> Iterator[Pair]:
    """Yield the pairs of an annotation file, in order.

    Raises:
        ConfigError: The file cannot be read, or a line is invalid; names file and line.
    """
    for annotation in iterate_annotations(path, images=images):
        for caption in annotation.captions:
            yield Pair(annotation.image, caption)


def survey(pairs: Iterable[Pair]) -> tuple[int, str]:
    """Return the number of pairs and a digest of all of them."""
    count, digest = 0, xxhash.xxh3_128()
    for pair in pairs:
        count += 1
        digest.update(json.dumps([pair.image, pair.caption]).encode())
    return count, digest.hexdigest()


def chunked(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    """Yield chunks of about `size` pairs, split between two images if possible.

    The chunks depend on the pairs only, so that a continued run has the same chunks as the
    interrupted one, and encodes the same images together.
    """
    chunk: list[Pair] = []
    for pair in pairs:
        full = len(chunk) >= size and pair.image != chunk[-1].image
        if full or len(chunk) >= _STRETCH * size:
            yield chunk
            chunk = []
        chunk.append(pair)
    if chunk:
        yield chunk


def header_path(out: Path) -> Path:
    """Return the path of the file with the settings of a run, beside its output."""
    return out.with_name(f"{out.name}.run.json")


class ScoreFile:
    """Read the lines that a run has written, then append to them; locks the file.

    Args:
        out: The file.
        header: The settings of the run; a run can be continued only with equal settings.

    Raises:
        ConfigError: The file belongs to another run, or to none.
        StoreError: The file cannot be written, or another process is writing it.
    """

    def __init__(self, out: Path, header: Mapping[str, Any]) -> None:
        self._out = out
        self._line = 0
        with os_errors_as_store_errors("write", out):
            try:
                self._file = lock_file(out, str(out))
            except CollectionLockedError as error:
                raise StoreError(
                    f"another process is writing {out}; wait for it, or choose another file"
                ) from error
            try:
                _require_header(out, header)
                self._written: BinaryIO = out.open("rb")
            except BaseException:
                self._file.close()
                raise

    def written(self, chunk: Sequence[Pair]) -> list[ScoredPair] | None:
        """Return the lines written for the next chunk; None if they are not complete.

        An incomplete chunk is truncated, and `write` continues in its place.

        Raises:
            StoreError: A line cannot be read, or this run would not have written it.
        """
        with os_errors_as_store_errors("read", self._out):
            start = self._written.tell()
            found: list[ScoredPair] = []
            for pair in chunk:
                line = self._written.readline()
                if not line.endswith(b"\n"):
                    self._file.truncate(start)
                    return None
                self._line += 1
                found.append(self._read(line, pair))
            return found

    def write(self, pairs: Sequence[ScoredPair]) -> None:
        """Append lines and sync them to disk.

        Raises:
            StoreError: They cannot be written; lines appended before are kept.
        """
        with os_errors_as_store_errors("write", self._out):
            self._file.write(b"".join(pair.line() for pair in pairs))
            self._file.flush()
            os.fsync(self._file.fileno())

    def require_end(self) -> None:
        """Check that there are no lines after the last chunk.

        Raises:
            StoreError: There are.
        """
        if self._written.read(1):
            raise StoreError(
                f"{self._out} has more lines than there are pairs; {_reset(self._out)}"
            )

    def close(self) -> None:
        """Close the file and release its lock."""
        self._written.close()
        self._file.close()

    def _read(self, line: bytes, pair: Pair) -> ScoredPair:
        try:
            scored = ScoredPair.of(line)
            if (scored.image, scored.caption) != (pair.image, pair.caption):
                raise ValueError("it belongs to another pair")
        except ValueError as error:
            raise StoreError(
                f"{self._out}:{self._line} was not written by this run ({error}); "
                f"{_reset(self._out)}"
            ) from error
        return scored


def _require_header(out: Path, header: Mapping[str, Any]) -> None:
    """Check that the output belongs to a run with these settings; write those of a new run."""
    path = header_path(out)
    ours = {"format": _FORMAT, **header}
    if kind_of(path) is None:
        if out.stat().st_size:
            raise ConfigError(
                f"{out} exists, but not {path.name}, which contains the settings of its run; "
                "choose another file, or delete it"
            )
        write_atomically(path, json.dumps(ours, indent=1).encode())
        return
    try:
        theirs = dict(json.loads(path.read_bytes()))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged; {_reset(out)}") from error
    differing = [key for key in ours if theirs.get(key) != ours[key]]
    if differing:
        detail = "; ".join(
            f"{key}: was {_shown(theirs.get(key))}, now {_shown(ours[key])}" for key in differing
        )
        raise ConfigError(
            f"{out} was started with other settings ({detail}); give the same settings to "
            f"continue, choose another file, or {_reset(out)}"
        )


def _shown(value: Any) -> str:
    return json.dumps(value) if value is not None else "none"


def _reset(out: Path) -> str:
    return f"delete {out} and {header_path(out).name} to start over"
