"""Checks of an index's arguments, the same for every engine."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.filters.field_paths import key_path
from edje_qdrant.index.moments import json_default
from edje_qdrant.index.words import WordVector
from edje_qdrant.types import Payload, Point

__all__ = [
    "FLOAT_BYTES",
    "CheckedPayload",
    "CheckedPoint",
    "check_batch_size",
    "check_dim",
    "check_ids",
    "check_keys",
    "check_limit",
    "check_metadata",
    "check_name",
    "check_payloads",
    "check_points",
    "check_vectors",
    "json_integer",
]

#: Bytes of one float of a vector as JSON text.
FLOAT_BYTES = 22

# Rounding error of the length of a float32 vector that was scaled to 1.
_ROUNDING = 2.0**-22

# Bytes around a payload in a request that sets it: the operation and the id.
_OPERATION_BYTES = 200
_CANONICAL = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NOT_IN_NAMES = frozenset('\0\x1f"*/:<>?\\|')

# Digits of the largest number of 64 bits, and a sign.
_LONGEST_INTEGER = 20


@dataclass(frozen=True, slots=True)
class CheckedPoint:
    """A point that every engine accepts.

    Attributes:
        id: UUID string, canonical.
        vector: `d` floats, unit length.
        payload: JSON object, a copy of the caller's.
        nbytes: Approximate bytes of the point in a request.
        words: Words of its text fields; None in an index without text fields.
    """

    id: str
    vector: list[float]
    payload: dict[str, Any]
    nbytes: int
    words: WordVector | None = None


@dataclass(frozen=True, slots=True)
class CheckedPayload:
    """Payload keys to set in one point.

    Attributes:
        id: UUID string, canonical.
        payload: JSON object, a copy of the caller's; no value at the top level is None.
        text: The payload as JSON, the same for equal ones.
    """

    id: str
    payload: dict[str, Any]
    text: bytes

    @property
    def nbytes(self) -> int:
        """Return the approximate bytes in a request."""
        return len(self.text) + _OPERATION_BYTES


def check_batch_size(batch_size: int) -> int:
    """Return the number of points in a page.

    Raises:
        ConfigError: It is below 1.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; ask for pages of 1 point or more")
    return batch_size


def check_dim(dim: int) -> int:
    """Return the vectors' width.

    Raises:
        ConfigError: It is below 1.
    """
    if dim < 1:
        raise ConfigError(f"dim is {dim}; give the embedding's width, 1 or more")
    return dim


def check_keys(keys: Iterable[str]) -> list[str]:
    """Return the paths of top-level payload keys, each once, in order.

    Raises:
        ConfigError: `keys` is one text, or a key cannot be written as a path.
    """
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        raise ConfigError(f"keys is the text {keys!r}; give a list of keys, such as [{keys!r}]")
    return list(dict.fromkeys(key_path(key, "payload key") for key in keys))


def check_limit(limit: int) -> int:
    """Return the number of candidates asked for.

    Raises:
        ConfigError: It is below 1.
    """
    if not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"limit is {limit}; ask for 1 candidate or more")
    return limit


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the metadata, as JSON returns it.

    Raises:
        ConfigError: It is not a JSON object.
    """
    return _json_copy(metadata, "metadata")[0]


def check_name(name: str) -> str:
    """Return a collection's name.

    Raises:
        ConfigError: A Qdrant server would refuse it.
    """
    if not isinstance(name, str):
        raise ConfigError(f"name is {name!r}; give the name of a collection")
    if name in (".", "..") or not 0 < len(name) <= 255 or _NOT_IN_NAMES & set(name):
        raise ConfigError(
            f"collection name {name!r} cannot be used; take 1 to 255 characters, "
            f"none of {' '.join(sorted(_NOT_IN_NAMES)[2:])}"
        )
    return name


def check_ids(image_ids: Sequence[str]) -> list[str]:
    """Return the ids, each once, in order.

    Raises:
        ConfigError: One is not a UUID in canonical form.
    """
    if isinstance(image_ids, str) or not isinstance(image_ids, Iterable):
        raise ConfigError(f"image_ids is {image_ids!r}; give a list of ids")
    for image_id in image_ids:
        if isinstance(image_id, str) and _CANONICAL.fullmatch(image_id):
            continue  # ten times faster than uuid, and every search calls this
        try:
            canonical = str(uuid.UUID(image_id))
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigError(f"image id {image_id!r} is not a UUID string") from error
        if canonical != image_id:
            raise ConfigError(f"image id {image_id!r} is not canonical; write {canonical!r}")
    return list(dict.fromkeys(image_ids))


def check_vectors(vectors: NDArray[np.floating[Any]], dim: int) -> NDArray[np.float32]:
    """Return `(n, d)` vectors scaled to unit length.

    Scaling happens here, not in the engines, so that all of them store the same numbers. A vector
    that has unit length already, up to rounding, stays the same to the last bit.

    Raises:
        ConfigError: The shape is not `(n, dim)`, a number is not finite, or a vector is zero.
    """
    array = np.asarray(vectors)
    if array.ndim != 2 or array.shape[1] != dim or not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(
            f"vectors have shape {array.shape} and dtype {array.dtype}; this index takes "
            f"(n, {dim}) floats: use the model the collection was written with"
        )
    wide = array.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        # As most vectors have; false if a number is not finite.
        if (np.abs(lengths - 1) < _ROUNDING).all():
            return array.astype(np.float32)
    # Dividing by the largest number first keeps the squares of very large ones finite.
    peaks = np.abs(wide).max(axis=1, keepdims=True)
    unfit = np.flatnonzero(~(np.isfinite(peaks) & (peaks > 0)))
    if len(unfit):
        raise ConfigError(
            f"vector {unfit[0]} of {len(array)} is zero or holds numbers that are not finite; "
            "it has no direction to compare: check the encoder and its input"
        )
    scaled = wide / peaks
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        given = np.abs(peaks * norms - 1) < _ROUNDING
    unit: NDArray[np.float32] = np.where(given, wide, scaled / norms).astype(np.float32)
    return unit


def check_points(points: Sequence[Point], dim: int) -> list[CheckedPoint]:
    """Return the points, ready to be written; of several with the same id, the last one.

    Raises:
        ConfigError: An id, a vector or a payload cannot be stored; names the point.
    """
    check_ids([point.id for point in points])
    checked: dict[str, CheckedPoint] = {}
    for point in points:
        try:
            vector = check_vectors(np.asarray(point.vector)[np.newaxis], dim)[0].tolist()
        except ConfigError as error:
            raise ConfigError(f"point {point.id}: {error}") from error
        payload, text = _json_copy(point.payload, f"the payload of point {point.id}")
        checked[point.id] = CheckedPoint(point.id, vector, payload, len(text) + dim * FLOAT_BYTES)
    return list(checked.values())


def check_payloads(payloads: Mapping[str, Payload]) -> list[CheckedPayload]:
    """Return what to set in each payload; points with nothing to set are left out.

    Raises:
        ConfigError: An id or a payload cannot be used; names the point.
    """
    check_ids([*payloads])
    checked: list[CheckedPayload] = []
    for image_id, payload in payloads.items():
        copy, text = _json_copy(payload, f"the payload of point {image_id}")
        # To the engines, None at the top level means that the key is to be removed.
        missing = next((key for key, value in copy.items() if value is None), None)
        if missing is not None:
            raise ConfigError(
                f"the payload of point {image_id} sets {missing!r} to None, which Qdrant does not "
                "keep there; call remove_payload_keys, or write the point again with upsert"
            )
        if copy:
            checked.append(CheckedPayload(image_id, copy, text))
    return checked


def _json_copy(data: Mapping[str, Any], what: str) -> tuple[dict[str, Any], bytes]:
    try:
        # Undecodable bytes of a file name are not valid text: encode fails here, not at a server.
        text = json.dumps(
            dict(data), allow_nan=False, ensure_ascii=False, default=json_default
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what} cannot be written as JSON: {error}") from error
    try:
        copy: dict[str, Any] = json.loads(text, parse_int=json_integer)
    except ValueError as error:
        raise ConfigError(f"{what} cannot be stored: {error}") from error
    return copy, text


def json_integer(digits: str) -> int:
    """Parse a whole number of a JSON text, for `json.loads(parse_int=json_integer)`.

    Raises:
        ValueError: It has more than 64 bits; engines would store the nearest float without an
            error.
    """
    number = int(digits) if len(digits) <= _LONGEST_INTEGER else None
    if number is None or not -(2**63) <= number < 2**63:
        shown = digits if number is not None else f"a number of {len(digits)} digits"
        raise ValueError(f"{shown} has more than 64 bits; store such numbers as text")
    return number
