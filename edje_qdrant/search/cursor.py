"""Cursors: the rest of a ranking as one opaque text, so that pages never repeat or skip."""

from __future__ import annotations

import base64
import binascii
import json
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from edje_qdrant.errors import ConfigError

__all__ = ["Cursor", "Place", "decode_cursor", "encode_cursor"]

_VERSION = 1
_ROW = np.dtype(
    [
        ("id", "V16"),
        ("score", "<f4"),
        ("probability", "<f8"),
        ("fusion_score", "<f8"),
        ("retrieval_score", "<f8"),
        ("retrieval_rank", "<u4"),
    ]
)
# What a text of this package's can unfold to, at most: 100,000 images and their scores.
_LARGEST = 8 << 20


class Place(NamedTuple):
    """Hold what a ranking says of one image; see `SearchHit`."""

    image_id: str
    score: float | None
    probability: float | None
    fusion_score: float | None
    retrieval_score: float
    retrieval_rank: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """Hold the rest of a ranking.

    Attributes:
        source: The collection that was searched, as `ImageCollection.identity` has it.
        query: What was asked.
        rank: Place of the first image of the rest, from 1.
        places: The rest, best first.
        group_by: The field that groups images, where one does.
        degraded: Whether the ranking is less than was asked for.
        reason: Why, when it is.
        candidates: Images that the first stage had found.
        scored: Those of them that were scored.
    """

    source: str
    query: str
    rank: int
    places: Sequence[Place]
    group_by: str | None = None
    degraded: bool = False
    reason: str | None = None
    candidates: int = 0
    scored: int = 0


def encode_cursor(cursor: Cursor) -> str:
    """Write a cursor as URL-safe text; some 65 characters an image that is left."""
    rows = np.zeros(len(cursor.places), _ROW)
    for row, place in zip(rows, cursor.places, strict=True):
        row["id"] = uuid.UUID(place.image_id).bytes
        for name in ("score", "probability", "fusion_score"):
            value = getattr(place, name)
            row[name] = np.nan if value is None else value
        row["retrieval_score"] = place.retrieval_score
        row["retrieval_rank"] = place.retrieval_rank
    head = {
        "source": cursor.source,
        "query": cursor.query,
        "rank": cursor.rank,
        "group_by": cursor.group_by,
        "degraded": cursor.degraded,
        "reason": cursor.reason,
        "candidates": cursor.candidates,
        "scored": cursor.scored,
    }
    said = json.dumps(head).encode()
    body = zlib.compress(len(said).to_bytes(4, "little") + said + rows.tobytes())
    checked = bytes([_VERSION]) + zlib.crc32(body).to_bytes(4, "little") + body
    return base64.urlsafe_b64encode(checked).decode().rstrip("=")


def decode_cursor(text: str) -> Cursor:
    """Read a cursor back.

    Raises:
        ConfigError: The text is no cursor, is cut or changed, or is of another version.
    """
    if not isinstance(text, str):
        raise ConfigError(f"cursor is a {type(text).__name__}; give the text of result.cursor")
    try:
        checked = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), b"-_", validate=True)
        version, check, body = checked[0], checked[1:5], checked[5:]
    except (binascii.Error, IndexError, ValueError) as error:
        raise ConfigError(_NO_CURSOR) from error
    if version != _VERSION:
        raise ConfigError(
            f"the cursor has version {version}, and this version of edje-qdrant reads {_VERSION}; "
            "search again"
        )
    if zlib.crc32(body).to_bytes(4, "little") != check:
        raise ConfigError(_NO_CURSOR)
    try:
        return _read(body)
    except (zlib.error, ValueError, KeyError, TypeError) as error:
        raise ConfigError(_NO_CURSOR) from error


_NO_CURSOR = "this is no whole cursor; pass the text of result.cursor as it is, or search again"


def _read(body: bytes) -> Cursor:
    unpacked = zlib.decompressobj()
    plain = unpacked.decompress(body, _LARGEST)
    if unpacked.unconsumed_tail:
        raise ValueError("longer than any cursor")
    size = int.from_bytes(plain[:4], "little")
    head: dict[str, Any] = json.loads(plain[4 : 4 + size])
    rows = np.frombuffer(plain[4 + size :], _ROW)
    places = [
        Place(
            str(uuid.UUID(bytes=row["id"].tobytes())),
            _number(row["score"]),
            _number(row["probability"]),
            _number(row["fusion_score"]),
            float(row["retrieval_score"]),
            int(row["retrieval_rank"]),
        )
        for row in rows
    ]
    return Cursor(
        source=str(head["source"]),
        query=str(head["query"]),
        rank=int(head["rank"]),
        places=places,
        group_by=head["group_by"],
        degraded=bool(head["degraded"]),
        reason=head["reason"],
        candidates=int(head["candidates"]),
        scored=int(head["scored"]),
    )


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
