"""Grouping of token references by segment, and errors found while reading them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import StoreError, TokensCorruptError, TokensNotFoundError
from edje_qdrant.tokens.checksum import checksums, named
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.protocol import EmptyCodes, StoredCodes, TokenReference, empty_codes
from edje_qdrant.tokens.segment import is_segment_id

__all__ = ["Problems", "WantedRecords", "gathered", "located"]

_MAX_RECORDS = 2**40


@dataclass(slots=True)
class Problems:
    """Collect errors, so that one exception names every image concerned.

    Attributes:
        where: Name of the store in error messages.
        unknown: Images without a reference.
        invalid: Images with an invalid reference, or one of another store.
        lost: Images whose record is past the end of its file.
        damaged: Images whose bytes differ from those written.
        errors: Errors of segments that cannot be read.
    """

    where: Path | str
    unknown: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    errors: list[StoreError] = field(default_factory=list)

    def unreadable(self, error: StoreError, image_ids: list[str]) -> None:
        """Add images whose segment cannot be read.

        Raises:
            StoreError: The error concerns the store, not these images.
        """
        if not isinstance(error, TokensNotFoundError | TokensCorruptError):
            raise error
        self.errors.append(type(error)(f"{error} (it holds {named(image_ids)})", image_ids))

    def check(
        self,
        image_ids: Sequence[str],
        references: Sequence[TokenReference],
        stored: StoredCodes,
    ) -> None:
        """Compare codes with the checksums in their references; add the images that differ."""
        for row, checksum in zip(stored.rows.tolist(), checksums(stored.codes), strict=True):
            if references[row].get("checksum") != checksum:
                self.damaged.append(image_ids[row])

    def raise_first(self) -> None:
        """Raise an exception for the first kind of error found, if any.

        Raises:
            TokensNotFoundError: Tokens are missing; names the images.
            TokensCorruptError: Tokens differ from those written; names the images.
        """
        if self.unknown:
            raise TokensNotFoundError(
                f"the points of {named(self.unknown)} do not say where their tokens are; run "
                "`edje-qdrant repair`, or ingest them again",
                self.unknown,
            )
        if self.invalid:
            raise TokensCorruptError(
                f"the tokens of {named(self.invalid)} were not written to {self.where}; open the "
                "collection with the token store that it was written with",
                self.invalid,
            )
        if self.errors:
            raise self.errors[0]
        if self.lost:
            raise TokensNotFoundError(
                f"a side file in {self.where} ends before the tokens of {named(self.lost)}; run "
                "`edje-qdrant repair`, or restore it from a copy",
                self.lost,
            )
        if self.damaged:
            raise TokensCorruptError(
                f"the tokens of {named(self.damaged)} in {self.where} are not what was written; "
                "run `edje-qdrant repair`, or restore them from a copy",
                self.damaged,
            )


@dataclass(slots=True)
class WantedRecords:
    """Hold the records of one segment that are to be read.

    Attributes:
        rows: Rows of the request, ascending.
        numbers: Number of each row's record.
        records: `(r, nbytes)` uint8, all records of the segment, once it is open.
    """

    rows: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    records: NDArray[np.uint8] = field(default_factory=lambda: empty_codes((0, 0)))

    def drop_lost(self) -> list[int]:
        """Drop the rows whose record is past the end of the segment, and return them."""
        count = len(self.records)
        lost = [r for r, n in zip(self.rows, self.numbers, strict=True) if n >= count]
        if lost:
            gone = set(lost)
            self.rows = [row for row in self.rows if row not in gone]
            self.numbers = [number for number in self.numbers if number < count]
        return lost


def located(
    image_ids: Sequence[str], references: Sequence[TokenReference], problems: Problems
) -> dict[str, WantedRecords]:
    """Group valid references by segment; add images with invalid ones to `problems`."""
    groups: dict[str, WantedRecords] = {}
    for row, (image_id, reference) in enumerate(zip(image_ids, references, strict=True)):
        segment, number = reference.get("segment"), reference.get("record")
        if number is None:
            problems.unknown.append(image_id)
        elif (
            type(number) is not int  # True is not a number here
            or not 0 <= number < _MAX_RECORDS
            or not isinstance(segment, str)
            or (segment not in groups and not is_segment_id(segment))
        ):
            problems.invalid.append(image_id)
        else:
            wanted = groups.get(segment)
            if wanted is None:
                wanted = groups[segment] = WantedRecords()
            wanted.rows.append(row)
            wanted.numbers.append(number)
    return groups


def gathered(codec: Codec, parts: Sequence[WantedRecords], empty: EmptyCodes) -> StoredCodes:
    """Copy the records of all parts, which `codec` encoded, in the order of their rows."""
    if len(parts) == 1:
        part = parts[0]
        if empty is empty_codes:
            codes = part.records[part.numbers]  # faster than `take` to a new array
        else:
            codes = empty((len(part.rows), codec.nbytes))
            # Only mode "raise" needs a buffer beside `out`; the numbers have been checked.
            np.take(part.records, part.numbers, axis=0, out=codes, mode="clip")
        return StoredCodes(codec, np.array(part.rows, np.intp), codes)
    rows = sorted(row for part in parts for row in part.rows)
    place = {row: at for at, row in enumerate(rows)}
    codes = empty((len(rows), codec.nbytes))
    for part in parts:
        for row, number in zip(part.rows, part.numbers, strict=True):
            codes[place[row]] = part.records[number]
    return StoredCodes(codec, np.array(rows, np.intp), codes)
