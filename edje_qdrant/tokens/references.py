"""Sort out references before reading, and what was wrong with them after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import StoreError, TokensCorruptError, TokensNotFoundError
from edje_qdrant.tokens.checksum import checksums, named
from edje_qdrant.tokens.protocol import TokenReference
from edje_qdrant.tokens.segment import is_segment_id

__all__ = ["EmptyCodes", "Located", "Problems", "gathered", "located"]

#: Rows asked for, their segment's `(k, nbytes)` records, and the numbers of theirs among them.
Located = tuple[list[int], NDArray[np.uint8], list[int]]

#: Makes a uint8 array of a shape, to be filled.
EmptyCodes = Callable[[tuple[int, int]], NDArray[np.uint8]]

_MAX_RECORDS = 2**40


@dataclass(slots=True)
class Problems:
    """Collect what was wrong, so that one error names every image it concerns.

    Attributes:
        where: What errors call the place.
        unknown: Images whose reference does not say where their tokens are.
        foreign: Images whose reference cannot be.
        lost: Images whose record lies past the end of its file.
        damaged: Images whose bytes differ from what was written.
    """

    where: Path | str
    unknown: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    errors: list[StoreError] = field(default_factory=list)

    def unreadable(self, error: StoreError, image_ids: list[str]) -> None:
        """Add images whose whole file cannot be read.

        Raises:
            StoreError: The error is about the store, not about these images.
        """
        if not isinstance(error, TokensNotFoundError | TokensCorruptError):
            raise error
        self.errors.append(type(error)(f"{error} (it holds {named(image_ids)})", image_ids))

    def check(
        self,
        image_ids: Sequence[str],
        references: Sequence[TokenReference],
        rows: Sequence[int],
        codes: NDArray[np.uint8],
    ) -> None:
        """Compare `(k, nbytes)` codes of the images at `rows` with their references."""
        for row, checksum in zip(rows, checksums(codes), strict=True):
            if references[row].get("checksum") != checksum:
                self.damaged.append(image_ids[row])

    def raise_first(self) -> None:
        """Raise the first kind of problem there is.

        Raises:
            TokensNotFoundError: Tokens are not there; names the images.
            TokensCorruptError: Tokens are not what was written; names the images.
        """
        if self.unknown:
            raise TokensNotFoundError(
                f"nothing says where the tokens of {named(self.unknown)} are; run "
                "`edje-qdrant repair`, or ingest them again",
                self.unknown,
            )
        if self.foreign:
            raise TokensCorruptError(
                f"the tokens of {named(self.foreign)} were not written to {self.where}; open the "
                "collection with what it was written with",
                self.foreign,
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


def located(
    image_ids: Sequence[str], references: Sequence[TokenReference], problems: Problems
) -> dict[str, tuple[list[int], list[int]]]:
    """Return segment -> (rows, record numbers); what cannot be located is put with the problems."""
    groups: dict[str, tuple[list[int], list[int]]] = {}
    for row, (image_id, reference) in enumerate(zip(image_ids, references, strict=True)):
        segment, number = reference.get("segment"), reference.get("record")
        if number is None:
            problems.unknown.append(image_id)
        elif (
            type(number) is not int  # True is no number here
            or not 0 <= number < _MAX_RECORDS
            or not isinstance(segment, str)
            or (segment not in groups and not is_segment_id(segment))
        ):
            problems.foreign.append(image_id)
        else:
            if segment not in groups:
                groups[segment] = ([], [])
            rows, numbers = groups[segment]
            rows.append(row)
            numbers.append(number)
    return groups


def gathered(
    parts: Sequence[Located], nbytes: int, empty: EmptyCodes | None = None
) -> tuple[list[int], NDArray[np.uint8]]:
    """Copy the records of all parts; return the rows, ascending, and their `(n, nbytes)` codes.

    Args:
        parts: What to copy.
        nbytes: Bytes of a record.
        empty: Makes the array that they are copied to, where it is to be of a memory of its own.
    """
    if len(parts) == 1:
        rows, records, numbers = parts[0]
        if empty is None:
            return rows, records[numbers]
        codes = empty((len(rows), nbytes))
        # Any other mode than "raise" writes to `out` itself; the numbers have been checked.
        np.take(records, numbers, axis=0, out=codes, mode="clip")
        return rows, codes
    order = sorted(row for rows, _, _ in parts for row in rows)
    place = {row: at for at, row in enumerate(order)}
    shape = (len(order), nbytes)
    codes = np.empty(shape, np.uint8) if empty is None else empty(shape)
    for rows, records, numbers in parts:
        for row, number in zip(rows, numbers, strict=True):
            codes[place[row]] = records[number]
    return order, codes
