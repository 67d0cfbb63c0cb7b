"""A run of pair scoring on the disk: what goes in, what was written, and where to go on."""

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
from edje_qdrant.files import lock_file, os_errors_as_store_errors, write_atomically

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
# A chunk may grow to as many times its size, to keep an image's captions together.
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
        caption: As it was read.
        score: The joint encoder's logit; None where there is an error.
        cosine: Of the image's and the caption's embedding; None where there is an error.
        keep: Whether the score reaches the threshold; None where there is none.
        error: Why the pair could not be scored.
    """

    image: str
    caption: str
    score: float | None
    cosine: float | None
    keep: bool | None
    error: str | None

    def line(self) -> bytes:
        """Return the line as it is written, its end included."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> ScoredPair:
        """Read a line back.

        Raises:
            ValueError: It is none.
        """
        try:
            pair = cls(**json.loads(line))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError("not a line of score-pairs") from error
        numbers = (pair.score, pair.cosine)
        if not all(number is None or isinstance(number, float) for number in numbers):
            raise ValueError("its score or its cosine is no number")
        return pair


def read_pairs(path: Path, images: str | Path | None) -> Iterator[Pair]:
    """Yield the pairs of an annotation file, in order.

    Raises:
        ConfigError: The file cannot be read, or a line is wrong; names file and line.
    """
    for annotation in iterate_annotations(path, images=images):
        for caption in annotation.captions:
            yield Pair(annotation.image, caption)


def survey(pairs: Iterable[Pair]) -> tuple[int, str]:
    """Return how many pairs there are, and a digest of them all."""
    count, digest = 0, xxhash.xxh3_128()
    for pair in pairs:
        count += 1
        digest.update(json.dumps([pair.image, pair.caption]).encode())
    return count, digest.hexdigest()


def chunked(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    """Yield runs of about `size` pairs, cut between two images where that is near.

    Where they are cut depends on the pairs alone, so that a run that goes on cuts as the one that
    was interrupted, and what is encoded together is the same.
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
    """Return where a run keeps what it was started with: beside its output."""
    return out.with_name(f"{out.name}.run.json")


class ScoreFile:
    """Read what a run has written, then append to it; one process at a time.

    Args:
        out: The file.
        header: What the run is started with; equal for runs that may go on with each other.

    Raises:
        ConfigError: The file is another run's, or not a run's at all.
        StoreError: It cannot be written, or another process is writing it.
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
        """Return what was written of the next chunk; None if it is not all there.

        Then its lines, and what a crash left of a line, are cut off, and `write` goes on there.

        Raises:
            StoreError: A line is not what this run would have written, or cannot be read.
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
        """Append lines, which survive a power cut once this has returned.

        Raises:
            StoreError: They cannot be written; what was appended before is kept.
        """
        with os_errors_as_store_errors("write", self._out):
            self._file.write(b"".join(pair.line() for pair in pairs))
            self._file.flush()
            os.fsync(self._file.fileno())

    def require_end(self) -> None:
        """Check that nothing follows the last chunk that was asked for.

        Raises:
            StoreError: Something does.
        """
        if self._written.read(1):
            raise StoreError(f"{self._out} has more lines than there are pairs; {_anew(self._out)}")

    def close(self) -> None:
        """Let go of the file."""
        self._written.close()
        self._file.close()

    def _read(self, line: bytes, pair: Pair) -> ScoredPair:
        try:
            scored = ScoredPair.of(line)
            if (scored.image, scored.caption) != (pair.image, pair.caption):
                raise ValueError("it is of another pair")
        except ValueError as error:
            raise StoreError(
                f"{self._out}:{self._line} is not what this run wrote ({error}); {_anew(self._out)}"
            ) from error
        return scored


def _require_header(out: Path, header: Mapping[str, Any]) -> None:
    """Check that the output is of a run like this one; a new run's header is written."""
    path = header_path(out)
    ours = {"format": _FORMAT, **header}
    if not path.exists():
        if out.stat().st_size:
            raise ConfigError(
                f"there is something at {out} already, and no {path.name} beside it that says "
                "which run wrote it; choose another file, or delete it"
            )
        write_atomically(path, json.dumps(ours, indent=1).encode())
        return
    try:
        theirs = dict(json.loads(path.read_bytes()))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged; {_anew(out)}") from error
    differing = [key for key in ours if theirs.get(key) != ours[key]]
    if differing:
        detail = "; ".join(
            f"{key}: then {_shown(theirs.get(key))}, now {_shown(ours[key])}" for key in differing
        )
        raise ConfigError(
            f"{out} was begun with something else ({detail}); give the same again to go on with "
            f"it, choose another file, or {_anew(out)}"
        )


def _shown(value: Any) -> str:
    return json.dumps(value) if value is not None else "none"


def _anew(out: Path) -> str:
    return f"delete {out} and {header_path(out).name} to begin anew"
