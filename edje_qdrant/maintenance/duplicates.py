"""Near-duplicates in a collection: groups by embedding, confirmed by tokens and image files."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edje_qdrant.checks import check_number
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.likeness import TIE, mean_cosine, token_vectors
from edje_qdrant.collection.references import user_payload
from edje_qdrant.errors import ConfigError, ImageReadError, MissingExtraError
from edje_qdrant.images import DecoderPool
from edje_qdrant.images.perceptual_hash import (
    PerceptualHash,
    can_hash,
    hash_image,
    small_square,
)
from edje_qdrant.index import Filter
from edje_qdrant.maintenance.arguments import check_collections, check_flags
from edje_qdrant.maintenance.reports import DuplicateGroup, DuplicateImage, DuplicatesReport
from edje_qdrant.maintenance.scan import PAGE, own_points, stored_codes
from edje_qdrant.sources.read import read_image, stored_id
from edje_qdrant.tokens.protocol import decoded
from edje_qdrant.types import Payload, Point

__all__ = [
    "DuplicateRule",
    "find_duplicates",
]

# Neighbours read for each image at first; four times as many where all of them are alike.
_NEIGHBOURS = 16

# Images whose tokens give the mean cosine of tokens; see `Likeness`.
_SAMPLE = 256


@dataclass(frozen=True, slots=True)
class DuplicateRule:
    """Say which images are near-duplicates of each other; benchmarks/duplicates.py measures it.

    A likeness is a cosine on a scale from 0, two images by chance, to 1, the same image; see
    `Likeness`.

    Attributes:
        embeddings: Least likeness of the embeddings, where perceptual hashes confirm it.
        tokens: Least likeness of the tokens.
        hash_bits: Bits of 64 in which the perceptual hashes may differ.
        embeddings_alone: Least likeness of the embeddings of images of which one cannot be hashed.
    """

    embeddings: float = 0.8
    tokens: float = 0.5
    hash_bits: int = 14
    embeddings_alone: float = 0.98

    def __post_init__(self) -> None:
        for name in ("embeddings", "tokens", "embeddings_alone"):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 < value <= 1  # NaN is neither
            ):
                raise ConfigError(f"{name} is {value!r}; give a likeness above 0, up to 1")
        check_number("hash_bits", self.hash_bits, least=0)


def find_duplicates(
    collection: ImageCollection,
    *,
    rule: DuplicateRule | None = None,
    filter: Filter | None = None,
    hashes: bool | None = None,
    progress: bool = False,
    wait: float = 300,
) -> DuplicatesReport:
    """Find groups of images that are near-duplicates of each other; nothing is changed.

    The images are taken in the order in which they would be kept. The next one that is in no group
    gets as its group all images that are its near-duplicates and in no group yet, so every image
    of a group is a near-duplicate of the first, and a chain of slowly changing images is not one
    group. Neighbours come from the index; an approximate one may miss some in large collections.
    Memory is some 300 bytes for each image, however many are alike.

    Args:
        collection: An open collection; searches continue.
        rule: What near-duplicates are.
        filter: Compare only images whose payload matches; None or `{}` for all.
        hashes: Read the files of images in question and compare perceptual hashes; by default if
            the extra `duplicates` is installed. A file that is missing, or holds another image now,
            is not compared, nor are frames of films and pages of documents; then
            `embeddings_alone` of the rule holds.
        progress: Show a bar on stderr.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Raises:
        ConfigError: An argument is invalid.
        MissingExtraError: `hashes` is True and the extra is not installed.
        StoreError: The index or the store cannot be read.
        EngineUnavailableError: The server cannot be reached.
    """
    check_collections(collection=collection)
    check_flags(progress=progress)
    if hashes is not None:
        check_flags(hashes=hashes)
        if hashes and not can_hash():
            raise MissingExtraError("imagehash", "duplicates")
    began = time.perf_counter()
    with collection.patient(wait), DecoderPool() as decoders:
        collection.reload()
        use_hashes = can_hash() if hashes is None else hashes
        search = _Search(
            collection, rule or DuplicateRule(), filter, decoders if use_hashes else None
        )
        groups = search.groups(progress)
        return DuplicatesReport(
            len(search.order),
            _described(collection, groups),
            use_hashes,
            search.unread,
            len(search.without_tokens),
            collection.likeness.mean,
            search.token_mean,
            time.perf_counter() - began,
        )


class _Alike(NamedTuple):
    """Two near-duplicates, `leader` before `member` in the order, and how alike they are."""

    leader: str
    member: str
    likeness: float
    token_likeness: float
    hash_distance: int | None


class _Search:
    """Go through the images of a collection in the order in which they would be kept.

    Attributes:
        order: Id -> place in the order.
        unread: Number of images whose file could not be hashed.
        without_tokens: Ids of images whose tokens cannot be read.
        token_mean: Mean cosine of two images' tokens.
    """

    def __init__(
        self,
        collection: ImageCollection,
        rule: DuplicateRule,
        filter: Filter | None,
        decoders: DecoderPool | None,
    ) -> None:
        self._collection, self._rule, self._filter = collection, rule, filter
        self._decoders = decoders
        self._hashes: dict[str, PerceptualHash | None] = {}
        self.without_tokens: set[str] = set()
        self.order = self._ordered()
        sample = self._points(sorted(self.order)[:_SAMPLE])
        self.token_mean = mean_cosine(self._tokens(sample)[1])
        self.without_tokens.clear()  # only those in question are counted
        least = rule.embeddings if decoders is not None else rule.embeddings_alone
        self._least = collection.likeness.cosine(min(least, rule.embeddings_alone)) - TIE

    @property
    def unread(self) -> int:
        return sum(found is None for found in self._hashes.values())

    def groups(self, progress: bool) -> list[list[_Alike]]:
        """Return the pairs of each group's first image and another, the most alike first."""
        groups: dict[str, list[_Alike]] = {}
        taken: set[str] = set()
        left = [*self.order]
        at = 0
        with tqdm(total=len(left), desc="comparing", unit=" images", disable=not progress) as shown:
            while at < len(left):
                block: list[str] = []
                start = at
                while at < len(left) and len(block) < PAGE:
                    if left[at] not in taken:
                        block.append(left[at])
                    at += 1
                for pair in self._confirmed(self._close(block, taken)):
                    if pair.leader in taken or pair.member in taken or pair.member in groups:
                        continue
                    taken.add(pair.member)
                    groups.setdefault(pair.leader, []).append(pair)
                shown.update(at - start)
        found = [sorted(pairs, key=lambda p: (-p.likeness, p.member)) for pairs in groups.values()]
        return sorted(found, key=lambda pairs: (-len(pairs), self.order[pairs[0].leader]))

    def _ordered(self) -> dict[str, int]:
        """Read all images' sizes and times; return id -> place, the best to keep first."""
        keys: list[tuple[int, float, int, str]] = []
        for page in self._collection.index.scroll(batch_size=4 * PAGE, filter=self._filter):
            for point in own_points(page, self._collection.of_other_programs(page)):
                payload = point.payload
                pixels = (_whole(payload, "width") or 0) * (_whole(payload, "height") or 0)
                size = _whole(payload, "file_size") or 0
                keys.append((-pixels, _moment(payload.get("taken_at")), -size, point.id))
        return {image_id: place for place, (*_, image_id) in enumerate(sorted(keys))}

    def _close(self, ids: Sequence[str], taken: set[str]) -> list[tuple[str, str, float]]:
        """Return pairs of images that are close enough by their embeddings, with the cosine.

        Args:
            ids: Images of which one has to be in each pair.
            taken: Images that are in a group.
        """
        vectors = self._collection.index.vectors(ids)
        pairs: dict[tuple[str, str], float] = {}
        asked = [image_id for image_id in ids if image_id in vectors]  # others were deleted
        count = _NEIGHBOURS
        while asked:
            queries = np.array([vectors[image_id] for image_id in asked], np.float32)
            more: list[str] = []
            found = self._collection.nearest(queries, count, filter=self._filter)
            for image_id, candidates in zip(asked, found, strict=True):
                close = sum(score >= self._least for score in candidates.scores)
                for place in range(close):
                    other = candidates[place].image_id
                    if other == image_id or other in taken or other not in self.order:
                        continue
                    pair = sorted((image_id, other), key=self.order.__getitem__)
                    pairs[pair[0], pair[1]] = candidates.scores[place]
                # Of images that are all alike, the first takes the others.
                if close == len(candidates) == count and not any(
                    (earlier, image_id) in pairs for earlier in more
                ):
                    more.append(image_id)
            asked, count = more, 4 * count
        return [(leader, member, score) for (leader, member), score in pairs.items()]

    def _confirmed(self, pairs: Sequence[tuple[str, str, float]]) -> Iterator[_Alike]:
        """Yield those of the pairs that are near-duplicates, in the order of their images."""
        ordered = sorted(pairs, key=lambda pair: (self.order[pair[0]], self.order[pair[1]]))
        for start in range(0, len(ordered), PAGE):
            yield from self._confirmed_part(ordered[start : start + PAGE])

    def _confirmed_part(self, pairs: Sequence[tuple[str, str, float]]) -> Iterator[_Alike]:
        ids = sorted({image_id for leader, member, _ in pairs for image_id in (leader, member)})
        points = self._points(ids)
        readable, vectors = self._tokens(points)
        row_of = {image_id: row for row, image_id in enumerate(readable)}
        alike: list[tuple[str, str, float, float]] = []
        for leader, member, cosine in pairs:
            if leader in row_of and member in row_of:
                tokens = float(vectors[row_of[leader]] @ vectors[row_of[member]])
                tokens = (tokens - self.token_mean) / (1 - self.token_mean)
                if tokens >= self._rule.tokens - TIE:
                    alike.append((leader, member, self._collection.likeness.of(cosine), tokens))
        self._hash({i for leader, member, *_ in alike for i in (leader, member)}, points)
        for leader, member, embeddings, tokens in alike:
            distance = self._distance(leader, member)
            if distance is None:
                fits = embeddings >= self._rule.embeddings_alone - TIE
            else:
                fits = distance <= self._rule.hash_bits
            if fits:
                yield _Alike(leader, member, embeddings, tokens, distance)

    def _points(self, ids: Sequence[str]) -> list[Point]:
        """Read points for their tokens; deleted ones are left out."""
        in_payload = self._collection.store.in_payload
        payloads = self._collection.index.retrieve(ids, tokens=in_payload)
        none = np.empty(0, np.float32)
        return [Point(i, none, payloads[i]) for i in ids if i in payloads]

    def _tokens(self, points: Sequence[Point]) -> tuple[list[str], NDArray[np.float32]]:
        """Return the ids of the points whose tokens can be read, and `(n, m * d_text)`."""
        contract = self._collection.contract
        read = stored_codes(self._collection, points)
        self.without_tokens.update(read.failed)
        shape = len(read.points), contract.num_tokens, contract.token_dim
        tokens = decoded(read.parts, shape) if read.points else np.empty(shape, np.float16)
        return [point.id for point in read.points], token_vectors(tokens)

    def _hash(self, ids: Collection[str], points: Sequence[Point]) -> None:
        """Read and hash the files of images that were not hashed yet."""
        if self._decoders is None:
            return
        missing = [point for point in points if point.id in ids and point.id not in self._hashes]
        with ThreadPoolExecutor(self._decoders.workers) as threads:
            for point, image in zip(missing, threads.map(self._small, missing), strict=True):
                self._hashes[point.id] = None if image is None else hash_image(image)

    def _small(self, point: Point) -> NDArray[np.uint8] | None:
        """Read an image's file; None if it cannot be read or holds another image now."""
        path = point.payload.get("path")
        if not isinstance(path, str):
            return None
        assert self._decoders is not None
        try:
            content = read_image(path)
            if stored_id(path, content) != point.id:
                return None
            return self._decoders.decode(content, path, small_square).array
        except ImageReadError:
            return None

    def _distance(self, leader: str, member: str) -> int | None:
        one, other = self._hashes.get(leader), self._hashes.get(member)
        return None if one is None or other is None else one.distance(other)


def _described(
    collection: ImageCollection, groups: Sequence[Sequence[_Alike]]
) -> tuple[DuplicateGroup, ...]:
    """Return groups with what the payloads say about their images."""
    ids = [i for pairs in groups for i in (pairs[0].leader, *(pair.member for pair in pairs))]
    payloads: dict[str, Payload] = {}
    for start in range(0, len(ids), PAGE):
        found = collection.index.retrieve(ids[start : start + PAGE], tokens=False)
        payloads.update({image_id: user_payload(found[image_id]) for image_id in found})
    return tuple(
        DuplicateGroup(
            (
                _image(pairs[0].leader, payloads),
                *(
                    _image(p.member, payloads, p.likeness, p.token_likeness, p.hash_distance)
                    for p in pairs
                ),
            )
        )
        for pairs in groups
    )


def _image(
    image_id: str,
    payloads: dict[str, Payload],
    likeness: float = 1.0,
    token_likeness: float = 1.0,
    hash_distance: int | None = None,
) -> DuplicateImage:
    payload = payloads.get(image_id, {})
    return DuplicateImage(
        image_id,
        _text(payload, "path"),
        _whole(payload, "width"),
        _whole(payload, "height"),
        _whole(payload, "file_size"),
        _text(payload, "taken_at"),
        round(likeness, 4),
        round(token_likeness, 4),
        hash_distance,
    )


def _whole(payload: Payload, name: str) -> int | None:
    value = payload.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(payload: Payload, name: str) -> str | None:
    value = payload.get(name)
    return value if isinstance(value, str) else None


def _moment(text: Any) -> float:
    """Return seconds since 1970 of an RFC 3339 text; infinity for anything else."""
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00").replace("z", "+00:00"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return moment.timestamp()
    except (ValueError, OverflowError):
        return math.inf
