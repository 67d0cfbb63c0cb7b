"""The result of a search: hits, pages, timings, and the cursor that continues it."""

from __future__ import annotations

import base64
import binascii
import json
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from edje_qdrant.errors import ConfigError, MissingExtraError
from edje_qdrant.model.calibration import MatchWord, match_word
from edje_qdrant.types import Payload, Timings

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["SearchHit", "SearchResult"]

# Characters of a query or a path in a repr.
_SHOWN = 60
_HTML_HEAD = ("rank", "", "score", "first stage", "path")


@dataclass(frozen=True, slots=True, repr=False)
class SearchHit:
    """Hold one image of a search result.

    Attributes:
        image_id: UUID string, made from the image's content.
        score: The joint encoder's logit; higher is better. Comparable within one query. None if
            the image was not scored.
        rank: Place in the result, from 1; later pages continue the count.
        retrieval_score: The first stage's cosine (not a cosine after `recommend` with
            `best_score`).
        retrieval_rank: Place among the candidates of the first stage, from 1.
        payload: What was stored with the image (`path` and the user's fields).
        probability: Probability that text and image match; None if the model has no calibration,
            or the text has fewer words than those of the calibration.
        fusion_score: Score of both stages together; None without fusion.
        group: Value of the `group_by` field; None without grouping, or if the image has no value.
        duplicates: Ids of the near-duplicates that this hit stands for, best first; empty without
            `collapse_duplicates`.

    The repr is short: ranks, score and path. `match` says the probability in a word.
    """

    image_id: str
    score: float | None
    rank: int
    retrieval_score: float
    retrieval_rank: int
    payload: Payload
    probability: float | None = None
    fusion_score: float | None = None
    group: Any = None
    duplicates: tuple[str, ...] = ()

    @property
    def match(self) -> MatchWord | None:
        """Return `"good"`, `"possible"` or `"weak"`; None without a probability.

        A good match is more likely right than not, a possible one has a probability of 0.1 or more.
        """
        return match_word(self.probability)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields by name, and `match`; the payload is not copied."""
        return {name: getattr(self, name) for name in _HIT_FIELDS}

    def __repr__(self) -> str:
        path = self.payload.get("path")
        if isinstance(path, str):
            which = f"path={path if len(path) <= _SHOWN else f'...{path[3 - _SHOWN :]}'!r}"
        else:
            which = f"image_id={self.image_id!r}"
        score = None if self.score is None else round(self.score, 3)
        return (
            f"SearchHit(rank={self.rank}, score={score}, retrieval_rank={self.retrieval_rank}, "
            f"{which})"
        )


_HIT_FIELDS = [*(each.name for each in fields(SearchHit)), "match"]


@dataclass(frozen=True, slots=True, repr=False)
class SearchResult(Sequence[SearchHit]):
    """Hold the answer to one query: a sequence of hits, best first.

    The repr is one line; in a notebook, a result is shown as a table with small pictures.

    `next` and `cursor` give further pages of the same ranking. They consist of the candidates of
    one search, so pages neither repeat nor skip an image.

    Attributes:
        query: The text of the query; for an image, its path.
        hits: Best first.
        timings: Milliseconds by stage.
        degraded: Whether the ranking is less than was requested.
        reason: Why it is degraded or the text was cut, if so.
        candidates: Number of images that the first stage found.
        scored: Number of them that the joint encoder scored.
        remaining: What ranks after the hits, best first; each hit is made when it is first used.
        group_by: The payload field that groups images; None without grouping.
        source: Identity of the collection, for cursors.
        truncated: Whether the text is longer than the model reads, so that its end has no effect.
        precision: Precision that the joint encoder computed in; None if it ranked nothing.
    """

    query: str
    hits: tuple[SearchHit, ...]
    timings: Timings
    degraded: bool = False
    reason: str | None = None
    candidates: int = 0
    scored: int = 0
    remaining: Sequence[SearchHit] = field(default=(), repr=False)
    group_by: str | None = field(default=None, repr=False)
    source: str = field(default="", repr=False)
    precision: str | None = field(default=None, repr=False)
    truncated: bool = False

    def next(self, count: int = 10) -> SearchResult:
        """Return the next page; empty after the last candidate.

        Nothing is searched or read again. In another process, use `cursor`.

        Args:
            count: Maximum number of hits on the page.

        Raises:
            ConfigError: `count` is below 1.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(f"count is {count!r}; ask for 1 image or more")
        hits, remaining = tuple(self.remaining[:count]), self.remaining[count:]
        return replace(self, hits=hits, remaining=remaining, timings=Timings(0, 0, 0, 0))

    @property
    def cursor(self) -> str | None:
        """Return a text with which `TwoStageRetriever.resume` continues; None after the last hit.

        It contains the query, and the order, scores and near-duplicates of the remaining images. It
        is URL-safe and takes some 65 characters for each image, and 22 for each near-duplicate.
        """
        return _written(self) if self.remaining else None

    @classmethod
    def from_cursor(cls, cursor: str) -> SearchResult:
        """Read a cursor: a result without hits whose `remaining` have no payload.

        Raises:
            ConfigError: The text is not a cursor, was cut or changed, or has another version.
        """
        if not isinstance(cursor, str):
            raise ConfigError(
                f"cursor is a {type(cursor).__name__}; give the text of result.cursor"
            )
        try:
            padded = cursor.encode() + b"=" * (-len(cursor) % 4)
            packed = base64.b64decode(padded, b"-_", validate=True)
            version, check, body = packed[0], packed[1:5], packed[5:]
        except (binascii.Error, IndexError, ValueError) as error:
            raise ConfigError(_NO_CURSOR) from error
        if zlib.crc32(body).to_bytes(4, "little") != check:
            raise ConfigError(_NO_CURSOR)
        if version not in (_CURSOR_VERSION, _WITH_DUPLICATES):
            raise ConfigError(
                f"the cursor has version {version}, and this version of edje-qdrant reads "
                f"{_CURSOR_VERSION} and {_WITH_DUPLICATES}; search again"
            )
        try:
            return _read(body)
        except (zlib.error, ValueError, KeyError, TypeError) as error:
            raise ConfigError(_NO_CURSOR) from error

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the fields of each hit by name, best first; payloads are copied."""
        return [{**hit.as_dict(), "payload": deepcopy(dict(hit.payload))} for hit in self.hits]

    def to_pandas(self) -> DataFrame:
        """Return the hits as a pandas DataFrame, one row each, best first.

        Its columns are the fields of a hit. The payload's fields are columns of their own, named
        as in filters: `payload.path`, `payload.camera.maker`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError("pandas", "pandas") from error
        if not self.hits:  # `json_normalize` makes no columns of no rows
            return pd.DataFrame(columns=[name for name in _HIT_FIELDS if name != "payload"])
        return pd.json_normalize(self.to_dicts())

    def __repr__(self) -> str:
        query = self.query if len(self.query) <= _SHOWN else f"{self.query[: _SHOWN - 3]}..."
        return f"<SearchResult {query!r}: {self._summary()}>"

    def _summary(self) -> str:
        hits = "1 hit" if len(self.hits) == 1 else f"{len(self.hits)} hits"
        degraded = f", degraded: {self.reason}" if self.degraded else ""
        return f"{hits} of {self.candidates} candidates, {self.timings.total:.1f} ms{degraded}"

    def _repr_html_(self) -> str:
        """Return the result as an HTML table, for notebooks.

        A hit has a small picture if its `path` names a file of at most 16 MB that can be read and
        contains that image.
        """
        from edje_qdrant.search.html import MOST_PICTURES, html_table, small_picture

        rows = [
            (
                str(hit.rank),
                small_picture(hit.payload.get("path"), hit.image_id) if n < MOST_PICTURES else "",
                "not scored" if hit.score is None else f"{hit.score:.2f}",
                f"#{hit.retrieval_rank} ({hit.retrieval_score:.3f})",
                str(hit.payload.get("path", hit.image_id)),
            )
            for n, hit in enumerate(self.hits)
        ]
        return html_table(self.query, self._summary(), _HTML_HEAD, rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a JSON object: the hits, the timings in ms, and the cursor."""
        return {
            "query": self.query,
            "hits": [hit.as_dict() for hit in self.hits],
            "timings_ms": {name: round(ms, 3) for name, ms in self.timings.as_dict().items()},
            "candidates": self.candidates,
            "scored": self.scored,
            "degraded": self.degraded,
            "truncated": self.truncated,
            "reason": self.reason,
            "precision": self.precision,
            "cursor": self.cursor,
        }

    @overload
    def __getitem__(self, index: int) -> SearchHit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[SearchHit, ...]: ...
    def __getitem__(self, index: int | slice) -> SearchHit | tuple[SearchHit, ...]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[SearchHit]:
        return iter(self.hits)


# A cursor is base64 of: version (1 byte), CRC-32 of the rest (4 bytes), and compressed the length
# of the head (4 bytes), the head as JSON, one row for each remaining image, and the ids of their
# near-duplicates. With version 2 there are some, and the head says how many each image has.
_CURSOR_VERSION, _WITH_DUPLICATES = 1, 2
_NUMBERS = {
    "score": "<f4",
    "probability": "<f8",
    "fusion_score": "<f8",
    "retrieval_score": "<f8",
    "retrieval_rank": "<u4",
}
_ROW = np.dtype([("id", "V16"), *_NUMBERS.items()])
_HEAD = (
    "source", "query", "group_by", "degraded", "reason", "candidates", "scored", "precision",
    "truncated",
)  # fmt: skip
# Maximum size of a decompressed cursor: 100,000 images and their scores.
_LARGEST = 8 << 20
_NO_CURSOR = "this is no whole cursor; pass the text of result.cursor as it is, or search again"


def _id_bytes(image_ids: Iterable[str]) -> bytes:
    return b"".join(bytes.fromhex(image_id.replace("-", "")) for image_id in image_ids)


def _id_text(packed: bytes) -> str:
    return str(uuid.UUID(bytes=packed))


def _written(result: SearchResult) -> str:
    rows = np.zeros(len(result.remaining), _ROW)
    rows["id"] = np.frombuffer(_id_bytes(hit.image_id for hit in result.remaining), "V16")
    for name in _NUMBERS:
        values = [getattr(hit, name) for hit in result.remaining]
        rows[name] = [np.nan if value is None else value for value in values]
    head: dict[str, Any] = {name: getattr(result, name) for name in _HEAD}
    head["rank"] = result.remaining[0].rank
    version = _CURSOR_VERSION
    if any(hit.duplicates for hit in result.remaining):
        version = _WITH_DUPLICATES
        head["duplicates"] = [len(hit.duplicates) for hit in result.remaining]
    text = json.dumps(head).encode()
    others = _id_bytes(each for hit in result.remaining for each in hit.duplicates)
    body = zlib.compress(len(text).to_bytes(4, "little") + text + rows.tobytes() + others)
    packed = bytes([version]) + zlib.crc32(body).to_bytes(4, "little") + body
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def _read(body: bytes) -> SearchResult:
    unpacked = zlib.decompressobj()
    plain = unpacked.decompress(body, _LARGEST)
    if unpacked.unconsumed_tail:
        raise ValueError("longer than any cursor")
    size = int.from_bytes(plain[:4], "little")
    head: dict[str, Any] = json.loads(plain[4 : 4 + size])
    rest = plain[4 + size :]
    counts = head.get("duplicates")
    whole = len(rest) if counts is None else len(counts) * _ROW.itemsize
    rows = np.frombuffer(rest[:whole], _ROW)
    others = iter(np.frombuffer(rest[whole:], "V16"))
    remaining = tuple(
        SearchHit(
            image_id=_id_text(row["id"].tobytes()),
            score=_number(row["score"]),
            rank=rank,
            retrieval_score=float(row["retrieval_score"]),
            retrieval_rank=int(row["retrieval_rank"]),
            payload={},
            probability=_number(row["probability"]),
            fusion_score=_number(row["fusion_score"]),
            duplicates=tuple(_id_text(each.tobytes()) for each in islice(others, count)),
        )
        for rank, (row, count) in enumerate(
            zip(rows, counts or [0] * len(rows), strict=True), start=int(head["rank"])
        )
    )
    return SearchResult(
        query=str(head["query"]),
        hits=(),
        timings=Timings(0, 0, 0, 0),
        degraded=bool(head["degraded"]),
        reason=head["reason"],
        candidates=int(head["candidates"]),
        scored=int(head["scored"]),
        remaining=remaining,
        group_by=head["group_by"],
        source=str(head["source"]),
        # Absent in cursors of older versions.
        precision=head.get("precision"),
        truncated=bool(head.get("truncated", False)),
    )


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
