"""Token references in payloads, and readers that keep the order of a request."""

from __future__ import annotations

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
    "CONTRACT_KEY",
    "another_model",
    "in_order",
    "is_ours",
    "readable",
    "reference_of",
    "repeated",
    "run_of",
    "signed",
    "user_payload",
]

Item = TypeVar("Item")
R = TypeVar("R")
T = TypeVar("T")

#: The key of a reference that names the model that wrote it; see `TokenContract.model_key`.
CONTRACT_KEY = "contract"

# The key of a reference that tells points of processes apart that add the same images at once.
_RUN = "run"

_REMEDY = (
    "list all with `edje-qdrant verify`, then encode them again with `edje-qdrant repair`, or "
    "delete them"
)


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
    """Return whether this package wrote a point: it has a UUID, and the reserved key `_edje`.

    Its tokens may be damaged all the same. Other programs can write points to a server's
    collection; their ids may be integers.
    """
    return TOKENS_KEY in payload and not point_id.isdecimal()


def signed(
    reference: TokenReference, contract: TokenContract, run: str | None = None
) -> dict[str, Any]:
    """Return a reference as points store it: with the key of the model that wrote the tokens.

    Args:
        reference: From the token store.
        contract: The collection's.
        run: Identifies what wrote the point, where several processes may write; see `run_of`.
    """
    of_run = {} if run is None else {_RUN: run}
    return {**reference, CONTRACT_KEY: contract.model_key, **of_run}


def run_of(payload: Payload) -> Any:
    """Return what identifies the object that wrote a point, if it had to be known."""
    return reference_of(payload).get(_RUN)


def another_model(
    contract: TokenContract,
    image_ids: Sequence[str],
    references: Sequence[TokenReference],
    where: str,
    remedy: str = _REMEDY,
) -> ContractMismatchError | None:
    """Return the error for points of another model, None if there are none.

    A reference that names no model was written by a version that named none; it is not checked.

    Args:
        contract: The collection's.
        image_ids: `n` ids of the points.
        references: `n` references.
        where: Name of the collection for the message.
        remedy: What to do, for the message.
    """
    key = contract.model_key
    named = [reference.get(CONTRACT_KEY, key) for reference in references]
    if named.count(key) == len(named):  # each search comes here with all of its candidates
        return None
    wrong = [row for row, name in enumerate(named) if name != key]
    shown = ", ".join(image_ids[row] for row in wrong[:3])
    found = str(named[wrong[0]])
    return ContractMismatchError(
        f"images {shown} ({len(wrong)} in all) of {where} were written by another model: its "
        f"contract is {found}, the collection's is {key}, so that their scores would mean nothing; "
        f"{remedy}",
        {CONTRACT_KEY: key},
        {CONTRACT_KEY: found},
    )


def in_order(
    image_ids: Sequence[str],
    found: Mapping[str, T],
    kind: type[TokensNotFoundError] = TokensNotFoundError,
) -> list[T]:
    """Return the values found for the ids, in order.

    Raises:
        TokensNotFoundError: Some ids were not found; names them. Of the `kind` given.
    """
    gone = [image_id for image_id in image_ids if image_id not in found]
    if gone:
        raise kind(
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
