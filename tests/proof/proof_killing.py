"""Operations on a collection that die at a chosen point of them."""

from __future__ import annotations

import io
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from proof_disk import Disk
from proof_world import codec_of, ingest, model, opened, searched, state_of

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import reference_of
from edje_qdrant.errors import CollectionNotFoundError, ConfigError
from edje_qdrant.index import VectorIndex
from edje_qdrant.index import folder as index_folder
from edje_qdrant.index.edge.backend import EdgeBackend
from edje_qdrant.maintenance import compact, export_collection, transcode, verify
from edje_qdrant.maintenance.repair import repair
from edje_qdrant.tokens import codec_file, file_writer, manifest
from edje_qdrant.tokens.segment import HEADER_BYTES


def die() -> NoReturn:
    """End this process at once, with nothing tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still here")


class Points:
    """Count how often each named point is passed, and die at one passage.

    Args:
        pipe: To the server, which kills a while after being told to.
        kill: `{"point": name, "number": which passage, "delay": seconds, "power": what is lost
            besides, see `Disk`}`; None to live.
        collection: The folder that holds the index and the side files, if it is there already.
    """

    def __init__(self, pipe: int, kill: dict[str, Any] | None, collection: Path) -> None:
        self._pipe, self._kill = pipe, kill or {}
        there = collection if (collection / "shard").exists() else None
        self._disk = Disk(there, self._kill.get("power"))
        self.passed: Counter[str] = Counter()

    def due(self, name: str) -> bool:
        """Note a passage; tell whether it is the one to die at."""
        self.passed[name] += 1
        return (self._kill.get("point"), self._kill.get("number")) == (name, self.passed[name])

    def at(self, name: str) -> None:
        if self.due(name):
            self.die()

    def die(self) -> NoReturn:
        self._disk.lose()
        die()

    def soon(self, name: str) -> None:
        """Have the server kill this process in the middle of what comes next."""
        if self.due(name):
            os.write(self._pipe, f"kill {self._kill['delay']}\n".encode())

    def around(self, owner: Any, name: str, called: str, *, during: bool = False) -> None:
        """Put points before and after a function, and in the middle of it by the clock."""
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **more: Any) -> Any:
            self.at(f"{called}: before")
            if during:
                self.soon(f"{called}: during")
            result = original(*arguments, **more)
            self.at(f"{called}: after")
            return result

        setattr(owner, name, wrapped)

    def halved(self, owner: Any, name: str, called: str, half: Callable[..., None]) -> None:
        """Put points before and after a function, and one where half of it was done."""
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **more: Any) -> Any:
            self.at(f"{called}: before")
            if self.due(f"{called}: half"):
                half(original, *arguments)
                self.die()
            result = original(*arguments, **more)
            self.at(f"{called}: after")
            return result

        setattr(owner, name, wrapped)

    def install(self) -> None:
        """Put points into everything that writes."""
        self.halved(file_writer.FileWriter, "_write", "token write", _half_of_the_tokens)
        self.halved(file_writer, "new_segment_file", "new segment", self._half_of_a_header)
        for module in (manifest, index_folder, codec_file):
            self._file_replaced(module)
        self._synced()
        self._named(os, "fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
        self._named(os, "replace", lambda _, new: str(new))
        self._named(os, "link", lambda _, new: str(new))
        self._named(Path, "unlink", lambda path, **_: str(path))
        self._named(Path, "rename", lambda _, new: str(new))
        for name, half in (
            ("upsert", lambda call, index, points: call(index, points[: len(points) // 2])),
            ("insert", lambda call, index, points: call(index, points[: len(points) // 2])),
            ("delete", lambda call, index, ids: call(index, ids[: len(ids) // 2])),
            ("set_payload", _half_of_the_payloads),
        ):
            self.halved(VectorIndex, name, f"engine {name}", half)
        for name in ("flush", "close"):
            self._flushed(name)
        for name in ("flush", "optimize", "close"):
            self.around(VectorIndex, name, f"engine {name}", during=True)
        for name in ("create", "open"):
            self._class_method(name)

    def _half_of_a_header(self, original: Callable[..., Any], *arguments: Any) -> None:
        _die_in_the_first_write(self.die)
        original(*arguments)

    def _synced(self) -> None:
        original = os.fsync

        def wrapped(descriptor: int) -> None:
            original(descriptor)
            self._disk.synced(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

        os.fsync = wrapped  # type: ignore[assignment]

    def _flushed(self, name: str) -> None:
        original = getattr(VectorIndex, name)

        def wrapped(index: VectorIndex, *more: Any) -> None:
            original(index, *more)
            self._disk.flushed()

        setattr(VectorIndex, name, wrapped)

    def _file_replaced(self, module: Any) -> None:
        original = module.write_atomically

        def wrapped(path: Path, data: bytes) -> None:
            if self.due(f"{_kind(str(path))}: half"):
                _die_in_the_first_write(self.die)
            original(path, data)

        module.write_atomically = wrapped

    def _named(self, owner: Any, name: str, path_of: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **more: Any) -> Any:
            what = f"{name} of {_kind(path_of(*arguments, **more))}"
            self.at(f"{what}: before")
            result = original(*arguments, **more)
            self.at(f"{what}: after")
            return result

        setattr(owner, name, wrapped)

    def _class_method(self, name: str) -> None:
        original = getattr(EdgeBackend, name)

        def wrapped(*arguments: Any) -> Any:
            self.soon(f"engine {name}: during")
            result = original(*arguments)
            self.at(f"engine {name}: after")
            return result

        setattr(EdgeBackend, name, staticmethod(wrapped))


def killable(
    pipe: int, folder: str, operation: str, kill: dict[str, Any] | None = None, **more: Any
) -> dict[str, int]:
    """Do an operation, dying where `kill` says; return how often each point was passed."""
    points = Points(pipe, kill, Path(folder) / "images")
    points.install()
    OPERATIONS[operation](folder, **more)
    return dict(points.passed)


def _ingest(folder: str, pictures: str, tokens: str) -> None:
    ingest(folder, pictures, tokens)


def _transcode(folder: str, codec: str) -> None:
    with opened(folder) as collection:
        transcode(collection, codec_of(codec))


def _compact(folder: str) -> None:
    with opened(folder) as collection:
        compact(collection)


def _repair(folder: str) -> None:
    with ImageCollection.open(folder, "images", for_repair=True) as collection:
        repair(collection, model(), batch_size=2)


def _export(folder: str, archive: str) -> None:
    with opened(folder) as collection:
        export_collection(collection, archive)


def _delete(folder: str, ids: list[str]) -> None:
    with opened(folder) as collection:
        for start in range(0, len(ids), 3):
            collection.delete(ids[start : start + 3])
        compact(collection)


OPERATIONS: dict[str, Callable[..., None]] = {
    "ingest": _ingest,
    "transcode": _transcode,
    "compact": _compact,
    "repair": _repair,
    "delete": _delete,
    "export": _export,
}


def with_holes(pipe: int, folder: str, pictures: str, more: list[str]) -> None:
    """Make a collection whose side files have holes: some images came, went, and came again."""
    ingest(folder, pictures)
    ingest(folder, more)
    with opened(folder) as collection:
        ids = sorted(p.id for page in collection.index.scroll() for p in page)
        gone = [point.id for page in collection.index.scroll() for point in page
                if point.payload["path"] in more]  # fmt: skip
        collection.delete([*gone, *ids[1::4]])
        collection.flush()
    ingest(folder, pictures)


def in_two_files(pipe: int, folder: str) -> list[str]:
    """The ids of all images whose tokens are in two of the side files."""
    with opened(folder) as collection:
        places = {
            point.id: reference_of(point.payload)["segment"]
            for page in collection.index.scroll()
            for point in page
        }
    gone = sorted(set(places.values()))[:2]
    return [image_id for image_id, segment in places.items() if segment in gone]


def damaged(pipe: int, folder: str) -> None:
    """Damage one side file's records, cut another, and delete a third and the manifest."""
    side = Path(folder) / "images" / "tokens"
    first, second, third, *_ = sorted(side.glob("tokens-*.bin"))
    data = bytearray(first.read_bytes())
    data[HEADER_BYTES + 10] ^= 1
    first.write_bytes(data)
    os.truncate(second, HEADER_BYTES + 200)
    third.unlink()
    (side / "tokens.json").unlink()


def export_again(pipe: int, folder: str, archive: str) -> str:
    """Export once more; return what is said if that is refused."""
    try:
        _export(folder, archive)
    except ConfigError as error:
        return str(error)
    return ""


def created(pipe: int, folder: str, tokens: str) -> None:
    """Make an empty collection."""
    opened(folder, tokens).close()


def found_now(pipe: int, folder: str) -> dict[str, Any]:
    """What is wrong with the collection as a kill left it, and how many images a search finds."""
    try:
        collection = ImageCollection.open(folder, "images")
    except CollectionNotFoundError:
        return {"kinds": [], "count": 0, "searched": 0}
    with collection:
        found = len(searched(collection)[0]) if collection.count() else 0
        kinds = [finding.kind for finding in verify(collection).findings]
        return {"kinds": kinds, "count": collection.count(), "searched": found}


def compacted_state(pipe: int, folder: str) -> dict[str, Any]:
    """The collection's state after tidying up, with what is left over."""
    with opened(folder) as collection:
        compact(collection)
        state = state_of(collection)
        side = Path(folder) / "images" / "tokens"
        listed = {f"tokens-{segment.id}.bin" for segment in collection.store.segments()}
        state["strays"] = sorted({path.name for path in side.glob("tokens-*.bin")} - listed)
        state["used"] = [s.num_records for s in collection.store.segments() if s.num_records]
        return state


def _half_of_the_tokens(_: Any, writer: Any, codes: Any, last: Any) -> None:
    data = np.ascontiguousarray(codes).tobytes()
    writer._file.seek(HEADER_BYTES + last.num_records * last.record_bytes)
    writer._file.write(data[: len(data) // 2 + 1])


def _die_in_the_first_write(die: Callable[[], NoReturn]) -> None:
    """Let the next file that is opened for writing take half of what comes, and no more."""

    class Dying(io.FileIO):
        def write(self, data: Any) -> int:
            view = memoryview(data).cast("B")
            super().write(view[: len(view) // 2])
            die()

    original = Path.open

    def opened(path: Path, mode: str = "r", buffering: int = -1, *more: Any) -> Any:
        if not set(mode) & {"w", "x"}:
            return original(path, mode, buffering, *more)
        file = Dying(path, mode.replace("b", ""))
        return file if buffering == 0 else io.BufferedWriter(file)

    Path.open = opened  # type: ignore[method-assign, assignment]


def _half_of_the_payloads(call: Any, index: Any, payloads: dict[str, Any]) -> None:
    call(index, dict([*payloads.items()][: len(payloads) // 2]))


def _kind(path: str) -> str:
    """What a path is, without what was drawn at random."""
    name = path.rpartition("/")[2].removesuffix(".new")
    if name.startswith(("tokens-", "codec-")):
        return name.partition("-")[0] + " file"
    return name if name.endswith(".json") else "a folder"
