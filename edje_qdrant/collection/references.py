"""Token references in payloads, and readers that keep the order of a request."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import (
    ContractMismatchError,
    StoreError,
    TokensCorruptError,
    TokensNotFoundError,
)
from edje_qdrant.index import TOKENS_KEY
from edje_qdrant.tokens.protocol import StoredCodes, TokenReference
from edje_qdrant.types import Payload

__all__ = [
    "in_order",
    "is_ours",
    "of_another_model",
    "readable",
    "reference_of",
    "repeated",
    "require_written_by",
    "signed",
    "user_payload",
]

Item = TypeVar("Item")
R = TypeVar("R")
T = TypeVar("T")

# The key of a reference that names the model that wrote it; see `TokenContract.model_key`.
_CONTRACT = "contract"

# Qdrant also has integers as ids, which this package never writes.
_INTEGER = re.compile(r"[0-9]+")


def user_payload(payload: Payload) -> dict[str, Any]:
    """Return the payload that the user stored, without the reserved key `_edje`."""
    own = dict(payload)
    own.pop(TOKENS_KEY, None)
    return own


def reference_of(payload: Payload) -> TokenReference:
    """Return the token reference in a point's payload; empty if there is none."""
    reference = payload.get(TOKENS_KEY)
    # `isinstance` with an abstract class takes longer than all the rest.
    return reference if type(reference) is dict or isinstance(reference, Mapping) else {}


def is_ours(point_id: str, payload: Payload) -> bool:
    """Return whether this package wrote a point: by a UUID, with the reserved key `_edje`.

    Its tokens may be damaged all the same. Other programs can write points to a server's
    collection; they have no tokens, and the first stage leaves them out.
    """
    return TOKENS_KEY in payload and _INTEGER.fullmatch(point_id) is None


def signed(reference: TokenReference, contract: TokenContract) -> dict[str, Any]:
    """Return a reference as points store it: with the key of the model that wrote the tokens."""
    return {**reference, _CONTRACT: contract.model_key}


def of_another_model(contract: TokenContract, reference: TokenReference) -> bool:
    """Return whether a reference names another model than a contract's.

    One that names none was written by a version that did not name any.
    """
    return bool(reference.get(_CONTRACT, contract.model_key) != contract.model_key)


def require_written_by(
    contract: TokenContract,
    image_ids: Sequence[str],
    references: Sequence[TokenReference],
    where: str,
) -> None:
    """Check that points were written by a contract's model, as far as they say so.

    Args:
        contract: The collection's.
        image_ids: `n` ids of the points.
        references: `n` references.
        where: Name of the collection for messages.

    Raises:
        ContractMismatchError: Some points are of another model; names them, and what to do.
    """
    key = contract.model_key  # compared here, as each search does so for all of its candidates
    if all(reference.get(_CONTRACT, key) == key for reference in references):
        return
    wrong = {
        image_id: reference[_CONTRACT]
        for image_id, reference in zip(image_ids, references, strict=True)
        if of_another_model(contract, reference)
    }
    shown = [*wrong][:3]
    found = str(wrong[shown[0]])
    raise ContractMismatchError(
        f"images {', '.join(shown)} ({len(wrong)} in all) of {where} were written by another "
        f"model: by the contract {found}, the collection's is {key}. Scores of them would mean "
        "nothing; list all with `edje-qdrant verify`, then encode them again with `edje-qdrant "
        "repair`, or delete them",
        {_CONTRACT: key},
        {_CONTRACT: found},
    )


def in_order(image_ids: Sequence[str], found: Mapping[str, T]) -> list[T]:
    """Return the values found for the ids, in order.

    Raises:
        TokensNotFoundError: Some ids were not found; names them.
    """
    gone = [image_id for image_id in image_ids if image_id not in found]
    if gone:
        raise TokensNotFoundError(
            f"images {', '.join(gone[:3])} ({len(gone)} in all) are not in the collection; "
            "if an earlier search found them, they have been deleted since: search again",
            gone,
        )
    return [found[image_id] for image_id in image_ids]


def readable(
    items: Sequence[Item], id_of: Callable[[Item], str], read: Callable[[list[Item]], R]
) -> tuple[list[Item], R, dict[str, StoreError]]:
    """Read the tokens of items, and leave out items whose tokens are missing or damaged.

    Args:
        items: Items to read.
        id_of: Returns the image id of an item.
        read: Reads several items, or raises an error that names the image ids concerned.

    Returns:
        The items that were read, the result of reading them, and id -> error of the others.

    Raises:
        StoreError: The store itself cannot be read.
    """
    failed: dict[str, StoreError] = {}
    left = list(items)
    while True:
        try:
            return left, read(left), failed
        except (TokensNotFoundError, TokensCorruptError) as error:  # noqa: PERF203 - try again
            named = set(error.image_ids) & {id_of(item) for item in left}
            if not named:
                raise
            failed.update(dict.fromkeys(named, error))
            left = [item for item in left if id_of(item) not in named]


def repeated(
    parts: Sequence[StoredCodes], image_ids: Sequence[str], wanted: Sequence[str]
) -> list[StoredCodes]:
    """Return the parts for `wanted`, where ids may repeat, from parts read for distinct ids."""
    place = {image_id: row for row, image_id in enumerate(image_ids)}
    asked = np.array([place[image_id] for image_id in wanted], np.intp)
    result: list[StoredCodes] = []
    for part in parts:
        where = np.full(len(image_ids), -1, np.intp)
        where[part.rows] = np.arange(len(part.rows))
        rows = np.flatnonzero(where[asked] >= 0)
        result.append(StoredCodes(part.codec, rows, part.codes[where[asked[rows]]]))
    return result
