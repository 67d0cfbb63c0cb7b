"""Damage files of a collection in every way that comes to mind, and look what comes of it."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from proof_world import (
    codec_of,
    copy_folder,
    ingest,
    model,
    opened,
    rankings_of,
    searched,
    state_of,
)

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import reference_of
from edje_qdrant.errors import EdjeError
from edje_qdrant.maintenance import transcode
from edje_qdrant.maintenance.repair import repair
from edje_qdrant.tokens.manifest import FORMAT, MAGIC
from edje_qdrant.tokens.segment import HEADER_BYTES

CORRUPT, MISSING, STORE, SAME = "TokensCorruptError", "TokensNotFoundError", "StoreError", "same"

# What may come of each damage to each file: errors by their exact class, or the very same rankings.
# A flip may hit the digit of the version: then the file counts as another version's, a StoreError.
RIGHT: dict[str, dict[str, set[str]]] = {
    "side file": {
        "truncate": {CORRUPT, MISSING, SAME},
        # Or the digits that name the codebook: then one is looked for that is not there.
        "flip a bit": {CORRUPT, MISSING, STORE, SAME},
        "flip a byte": {CORRUPT, MISSING, STORE, SAME},
        "zero a run": {CORRUPT, SAME},
        "raise the version": {STORE},
        "put another collection's": {CORRUPT},
        "delete": {MISSING},
        "add rubbish": {SAME},
        "exchange two pieces": {CORRUPT, SAME},
    },
    "manifest": {
        "truncate": {CORRUPT},
        "flip a bit": {CORRUPT, STORE},
        "flip a byte": {CORRUPT, STORE},
        "zero a run": {CORRUPT},
        "raise the version": {STORE},
        "put another collection's": {CORRUPT},
        "put an older one": {SAME},
        "delete": {MISSING},
        "add rubbish": {CORRUPT},
        "exchange two pieces": {CORRUPT, STORE, SAME},
    },
    # A codebook is told by its hash; what is written around it hardly matters.
    "codebook": {
        "truncate": {CORRUPT},
        "flip a bit": {CORRUPT, SAME},
        "flip a byte": {CORRUPT, SAME},
        "zero a run": {CORRUPT, SAME},
        "raise the version": {CORRUPT},
        "put another collection's": {CORRUPT, SAME},
        "delete": {MISSING},
        "add rubbish": {CORRUPT},
        "exchange two pieces": {CORRUPT, SAME},
    },
    "index.json": {
        "truncate": {STORE},
        "flip a bit": {STORE},
        "flip a byte": {STORE},
        "zero a run": {STORE},
        "raise the version": {STORE},
        "put another collection's": {CORRUPT},
        "put an older one": {SAME},
        "delete": {STORE},
        "add rubbish": {STORE},
        "exchange two pieces": {STORE, SAME},
    },
}
# Side files in float16, in a codebook's codes, half in one and half in the other, and half in each
# of two codebooks' codes; tokens in the payload, in a codebook's codes.
TEMPLATES = ("plain", "pq", "mixed", "books", "payload")


def make_templates(pipe: int, root: str, ours: list[str], others: list[str]) -> dict[str, Any]:
    """Make collections to damage, and one of other images for each; return their states."""
    books = [str(Path(root) / name) for name in ("book.safetensors", "other-book.safetensors")]
    for folder, pictures, (book, other_book) in (
        (Path(root), ours, books),
        (Path(root) / "others", others, books[::-1]),
    ):
        half = len(pictures) // 2
        for name in TEMPLATES:
            place = "payload" if name == "payload" else "file"
            first = {"plain": "float16", "mixed": "float16", "books": other_book}.get(name, book)
            at = str(folder / name)
            ingest(at, pictures[:half], place, first)
            kept = folder / f"older-{name}"
            kept.mkdir()
            for path in (folder / name / "images").rglob("*.json"):
                if path.name in ("tokens.json", "index.json"):
                    shutil.copy(path, kept)
            if name in ("mixed", "books"):
                with opened(at) as collection:
                    collection.set_codec(codec_of(book))
            ingest(at, pictures[half:], place)
            if name == "plain":
                with opened(at) as collection:  # records behind the last that a point refers to
                    collection.store.put_codes(
                        collection.store.codec.encode(model().encode_images(_blank(2)).tokens)
                    )
                    collection.store.flush()
    states = {}
    for name in TEMPLATES:
        with ImageCollection.open(Path(root) / name, "images") as collection:
            states[name] = state_of(collection)
            states[name]["references"] = {
                point.id: dict(reference_of(point.payload))
                for page in collection.index.scroll()
                for point in page
            }
        if name in ("mixed", "books"):
            folder = copy_folder(Path(root) / name, Path(root) / f"transcoded-{name}")
            with ImageCollection.open(folder, "images") as collection:
                transcode(collection, collection.codec)
                states[name]["transcoded"] = rankings_of(searched(collection))
    return states


@dataclass
class Case:
    """One damage: which file of which template, how, and what the collection was before.

    Attributes:
        hit: Ids of the images whose records are not what they were, where a side file was hit.
        header: Whether a side file's header was.
    """

    seed: int
    root: Path
    folder: Path
    template: str
    states: dict[str, Any]
    target: str = ""
    kind: str = ""
    path: Path = Path()
    hit: frozenset[str] = frozenset()
    header: bool = False

    @property
    def expected(self) -> list[list[list[str]]]:
        rankings: list[list[list[str]]] = self.states[self.template]["rankings"]
        return rankings

    def __str__(self) -> str:
        return f"case {self.seed}: {self.template}, {self.path.name}, {self.kind}"


def damage_cases(
    pipe: int, root: str, scratch: str, states: dict[str, Any], seeds: list[int]
) -> list[list[str]]:
    """Do cases; return for each the file, the damage, what came of it, and how it was mended.

    Raises:
        AssertionError: Something came of one that is not right; names the case.
    """
    done = []
    for seed in seeds:
        random = Random(seed)
        template = random.choice(TEMPLATES)
        folder = copy_folder(Path(root) / template, Path(scratch) / str(seed))
        case = Case(seed, Path(root), folder, template, states)
        try:
            done.append([case.target, case.kind, *_do(case, random)])
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{case}: {type(error).__name__}") from error
        done[-1][:2] = [case.target, case.kind]
        shutil.rmtree(folder)
    return done


def _do(case: Case, random: Random) -> list[str]:
    _choose(case, random)
    beforehand = case.target == "side file" and random.random() < 0.25
    if beforehand:
        with ImageCollection.open(case.folder, "images") as collection:
            assert rankings_of(searched(collection)) == case.expected
            _damage(case, random)
            came = _came_of(lambda: _strict(case, collection), case)
            if case.hit and not case.header and case.kind not in _WHOLE:
                assert came != SAME, "damaged records were scored"
    else:
        _damage(case, random)
        came = _came_of(lambda: _opened_and_searched(case), case)
        right = RIGHT[case.target][case.kind]
        assert came in right, f"{came}, not one of {right}"
        if case.target == "side file" and came != STORE:
            assert (came == SAME) == (not case.hit and not case.header), f"{came}, {case.hit}"
    degraded = _came_of(lambda: _first_stage(case), case)
    mended = _came_of(lambda: _mend(case, random), case)
    if case.target in ("side file", "manifest") and not _of_another_version(case.path):
        assert degraded in ("same", "degraded"), degraded
        assert mended in ("same", "mended", "left"), mended
    return [("while open: " if beforehand else "") + came, mended]


def _of_another_version(path: Path) -> bool:
    """Whether a file says that it is another version's or another program's: it is left alone."""
    try:
        text = path.read_bytes()
        data = json.loads(text[:HEADER_BYTES] if path.suffix == ".bin" else text)
        return (data["magic"], data["format"]) != (MAGIC, FORMAT)
    except (OSError, ValueError, LookupError, TypeError):
        return False


_WHOLE = ("put another collection's", "delete")


def _choose(case: Case, random: Random) -> None:
    inside = case.folder / "images"
    targets = {
        "side file": sorted(inside.glob("tokens/tokens-*.bin"), key=_age),
        "manifest": [*inside.glob("tokens/tokens.json")],
        "codebook": sorted(inside.glob("tokens/codec-*")),
        "index.json": [inside / "index.json"],
    }
    weights = {"side file": 9, "manifest": 5, "codebook": 4, "index.json": 3}
    there = [target for target, paths in targets.items() if paths]
    (case.target,) = random.choices(there, [weights[target] for target in there])
    case.path = random.choice(targets[case.target])
    case.kind = random.choice([*RIGHT[case.target]])


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns  # the names are drawn at random


def _damage(case: Case, random: Random) -> None:
    """Damage the chosen file in place, and note whose records it hit."""
    before = case.path.read_bytes()
    if case.kind == "delete":
        case.path.unlink()
        after = None
    else:
        after = DAMAGES[case.kind](case, random, before)
        with case.path.open("r+b") as file:
            file.truncate(len(after))
            file.write(after)
    if case.target != "side file":
        return
    case.header = after is None or after[:HEADER_BYTES] != before[:HEADER_BYTES]
    references = case.states[case.template]["references"]
    ours = {i: r for i, r in references.items() if r["segment"] == case.path.stem[7:]}
    width = _record_bytes(case, before)
    case.hit = frozenset(
        image_id
        for image_id, reference in ours.items()
        if after is None
        or _record(after, reference["record"], width) != _record(before, reference["record"], width)
    )


def _record_bytes(case: Case, before: bytes) -> int:
    width = json.loads(before[:HEADER_BYTES])["record_bytes"]
    assert isinstance(width, int)
    return width


def _record(data: bytes, number: int, width: int) -> bytes:
    return data[HEADER_BYTES + number * width : HEADER_BYTES + (number + 1) * width]


def _came_of(attempt: Callable[[], str], case: Case) -> str:
    """What an attempt returns, or the class of the error it raises; nothing but ours may come."""
    try:
        return attempt()
    except EdjeError as error:
        return type(error).__name__


def _strict(case: Case, collection: ImageCollection) -> str:
    assert rankings_of(searched(collection)) == case.expected, "other rankings"
    return SAME


def _opened_and_searched(case: Case) -> str:
    with ImageCollection.open(case.folder, "images") as collection:
        return _strict(case, collection)


def _first_stage(case: Case) -> str:
    """Search a collection opened to be mended: what is damaged keeps its place, without a score."""
    with ImageCollection.open(case.folder, "images", for_repair=True) as collection:
        results = searched(collection, on_missing="first_stage")
    unscored: set[str] = set()
    for result, expected in zip(results, case.expected, strict=True):
        scores = {image_id: (score, cosine) for image_id, score, cosine in expected}
        missing = {hit.image_id for hit in result if hit.score is None}
        unscored |= missing
        assert result.degraded == bool(missing)
        assert bool(result.reason) == bool(missing)
        if missing:
            assert any(image_id in str(result.reason) for image_id in missing)
        for hit in result:
            score, cosine = scores[hit.image_id]
            assert hit.retrieval_score.hex() == cosine
            if hit.score is None:
                assert hit.rank == hit.retrieval_rank
            else:
                assert hit.score.hex() == score, "another score"
        scored = [hit.image_id for hit in result if hit.score is not None]
        assert scored == [image_id for image_id, _, _ in expected if image_id not in missing]
    if case.target == "side file":
        whole = {
            i
            for i, r in case.states[case.template]["references"].items()
            if case.header and r["segment"] == case.path.stem[7:]
        }
        assert unscored == case.hit | whole
    elif case.target == "manifest":
        assert not unscored
    return "degraded" if unscored else SAME


def _mend(case: Case, random: Random) -> str:
    """Repair, once in a while with an image's file away; what cannot be mended must be named."""
    away: Path | None = None
    paths = {i: Path(p["path"]) for i, p in case.states[case.template]["payloads"].items()}
    if case.hit and random.random() < 0.2:
        away = paths[random.choice(sorted(case.hit))]
        away.rename(away.with_suffix(".away"))
    if case.kind == "put an older one" and case.target == "manifest":
        _write_on(case)
    try:
        with ImageCollection.open(case.folder, "images", for_repair=True) as collection:
            report = repair(collection, model())
    finally:
        if away is not None:
            away.with_suffix(".away").rename(away)
    left = {finding.image_id for finding in report.left}
    assert left == ({i for i, path in paths.items() if path == away} if away else set())
    with ImageCollection.open(case.folder, "images", for_repair=bool(left)) as collection:
        if left:
            results = searched(collection, on_missing="first_stage")
            for result in results:
                assert {hit.image_id for hit in result if hit.score is None} == left
            return "left"
        state = state_of(collection)
    before = case.states[case.template]
    for same in ("ids", "count", "payloads", "referring", "points"):
        assert state[same] == before[same], same
    kinds = {kind for kind, _, _ in state["findings"]}
    if case.template == "payload" and case.kind == "put another collection's":
        assert not kinds  # encoded anew with that one's codebook
    elif case.kind == "put an older one":
        assert kinds <= {"other codec"}  # and moved to the codec it knows
    elif case.template in ("mixed", "books"):  # and here with the collection's codec of today
        assert kinds <= {"other codec"}
        for rankings, *allowed in zip(
            state["rankings"],
            before["rankings"],
            before["transcoded"],  # what was moved
            case.states["pq"]["rankings"],  # what was encoded anew
            strict=True,
        ):
            known = {tuple(hit) for ranking in allowed for hit in ranking}
            assert {tuple(hit) for hit in rankings} <= known, "other scores after repair"
    else:
        assert not kinds
        assert state["rankings"] == before["rankings"], "other rankings after repair"
    return "mended" if report.encoded else SAME


def _write_on(case: Case) -> None:
    """Add an image and delete it again: with an older manifest, nothing may be written over."""
    added = str(uuid.UUID(int=1))
    with ImageCollection.open(case.folder, "images") as collection:
        collection.add([added], model().encode_images(_blank(1)), [{}])
        collection.delete([added])
        assert rankings_of(searched(collection)) == case.expected, "written over"


def _truncated(case: Case, random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data))]


def _flipped_bit(case: Case, random: Random, data: bytes) -> bytes:
    return _changed(data, _place(case, random, data), lambda byte: byte ^ 1 << random.randrange(8))


def _flipped_byte(case: Case, random: Random, data: bytes) -> bytes:
    return _changed(data, _place(case, random, data), lambda byte: byte ^ random.randint(1, 255))


def _place(case: Case, random: Random, data: bytes) -> int:
    """Anywhere; a side file's and a codebook's beginning, which says more, as often as the rest."""
    start = {"side file": 200, "codebook": 250}.get(case.target, len(data))
    return random.randrange(start if random.random() < 0.4 else len(data))


def _changed(data: bytes, place: int, change: Callable[[int], int]) -> bytes:
    return data[:place] + bytes([change(data[place])]) + data[place + 1 :]


def _zeroed(case: Case, random: Random, data: bytes) -> bytes:
    start, length = _place(case, random, data), random.choice([1, 16, 512, 4096])
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def _later_version(case: Case, random: Random, data: bytes) -> bytes:
    if case.target == "codebook":
        return data.replace(b"edje-qdrant codec 1", b"edje-qdrant codec 2", 1)
    old = b'"format": 2' if case.target == "index.json" else b'"format": 1'
    assert old in data
    return data.replace(old, b'"format": 9', 1)


def _another_collections(case: Case, random: Random, data: bytes) -> bytes:
    inside = case.root / "others" / case.template / "images"
    pattern = {
        "side file": "tokens/tokens-*.bin",
        "manifest": "tokens/tokens.json",
        "codebook": "tokens/codec-*",
        "index.json": "index.json",
    }[case.target]
    return random.choice(sorted(inside.glob(pattern), key=_age)).read_bytes()


def _older(case: Case, random: Random, data: bytes) -> bytes:
    return (case.root / f"older-{case.template}" / case.path.name).read_bytes()


def _with_rubbish(case: Case, random: Random, data: bytes) -> bytes:
    return data + random.randbytes(random.choice([1, 16, 127, 128, 4096, 5000]))


def _exchanged(case: Case, random: Random, data: bytes) -> bytes:
    start, width = 0, random.choice([1, 8, 32])
    if case.target == "side file":
        start, width = HEADER_BYTES, _record_bytes(case, data)
    pieces = (len(data) - start) // width
    if pieces < 2:
        return data
    a, b = (start + width * n for n in sorted(random.sample(range(pieces), 2)))
    return (
        data[:a] + data[b : b + width] + data[a + width : b] + data[a : a + width]
        + data[b + width :]
    )  # fmt: skip


DAMAGES: dict[str, Callable[[Case, Random, bytes], bytes]] = {
    "truncate": _truncated,
    "flip a bit": _flipped_bit,
    "flip a byte": _flipped_byte,
    "zero a run": _zeroed,
    "raise the version": _later_version,
    "put another collection's": _another_collections,
    "put an older one": _older,
    "add rubbish": _with_rubbish,
    "exchange two pieces": _exchanged,
}


def _blank(n: int) -> list[Any]:
    from PIL import Image

    return [Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(n)]


assert os.name == "posix"
