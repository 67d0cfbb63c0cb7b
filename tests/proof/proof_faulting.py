"""Let the operating system refuse a write, once or from then on, and look what becomes of it."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from proof_world import codec_of, copy_folder, ingest, model, opened, state_of

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import StoreError
from edje_qdrant.index import folder as index_folder
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.maintenance import compact, export_collection, transcode
from edje_qdrant.maintenance.repair import repair

_CHECKED = [(os, "fsync"), (os, "replace"), (os, "open"), (os, "link")]
_NO_SPACE_NEEDED = ("open rb", "open", "unlink", "truncate")
_CHECKED += [(Path, "unlink"), (Path, "rename"), (Path, "mkdir")]  # type: ignore[list-item]

# Of Linux's `unshare` and `mount`.
_NEW_USER, _NEW_MOUNTS, _REMOUNT = 0x10000000, 0x00020000, 32


class Faults:
    """Count the calls that open and write files below a folder, and fail from a chosen one on.

    Args:
        below: The folder; what is done elsewhere is let through.
        fail_at: Which call fails first, from 1; 0 for none.
        number: The error's. A full disk (ENOSPC) lets everything through that needs no space.
        lasting: Whether all calls fail from then on, as on a full disk.
    """

    def __init__(
        self, below: Path, fail_at: int = 0, number: int = 0, *, lasting: bool = False
    ) -> None:
        self._below = str(below)
        self._fail_at, self._number, self._lasting = fail_at, number, lasting
        self._halved = False
        self.calls = 0
        self.failed: list[str] = []

    def due(self, what: str) -> bool:
        """Note a call, and tell whether it is to fail."""
        if self._number == errno.ENOSPC and what in _NO_SPACE_NEEDED:
            return False
        self.calls += 1
        late = self._lasting and 0 < self._fail_at < self.calls
        return late or self.calls == self._fail_at

    def call(self, what: str) -> None:
        """Note a call.

        Raises:
            OSError: It is to fail.
        """
        if self.due(what):
            self.fail(what)

    def fail(self, what: str) -> None:
        self.failed.append(what)
        raise OSError(self._number, os.strerror(self._number))

    def write(self, data: memoryview, write: Callable[[memoryview], int]) -> int:
        """Write; the first write that is to fail takes half, as on a disk that fills up."""
        if not self.due("write"):
            return write(data)
        if self._halved or len(data) < 2:
            self.fail("write")
        self._halved = True
        self._fail_at = self.calls + 1
        return write(data[: len(data) // 2])

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand between Python and the system."""
        kept = [(owner, name, getattr(owner, name)) for owner, name in _CHECKED]
        opening = Path.open
        for owner, name, original in kept:
            setattr(owner, name, self._checked(name, original))
        Path.open = self._opening(opening)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for owner, name, original in kept:
                setattr(owner, name, original)
            Path.open = opening  # type: ignore[method-assign]

    def _inside(self, path: Any) -> bool:
        # An open file is one of these here: images are read by path.
        return isinstance(path, int) or os.fspath(path).startswith(self._below)

    def _checked(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **more: Any) -> Any:
            if self._inside(arguments[0]):
                self.call(name)
            return original(*arguments, **more)

        return called

    def _opening(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Path, mode: str = "r", buffering: int = -1, **more: Any) -> Any:
            if not self._inside(path):
                return original(path, mode, buffering, **more)
            self.call(f"open {mode}")
            if mode == "rb":
                return original(path, mode, buffering, **more)
            file = _File(path, mode.replace("b", ""), self)
            return file if buffering == 0 else io.BufferedWriter(file)

        return called


class _File(io.FileIO):
    def __init__(self, path: Path, mode: str, faults: Faults) -> None:
        self._faults = faults
        super().__init__(path, mode)

    def write(self, data: Any) -> int:
        return self._faults.write(memoryview(data).cast("B"), super().write)

    def truncate(self, size: int | None = None) -> int:
        self._faults.call("truncate")
        return super().truncate(size)


def _ingest(collection: ImageCollection, given: dict[str, Any]) -> None:
    ingest_images(
        given["pictures"], collection, model(), batch_size=4, checkpoint_every=8, progress=False
    )


def _switch(collection: ImageCollection, given: dict[str, Any]) -> None:
    if collection.codec.name != "int8":
        collection.set_codec(codec_of("int8"))
    _ingest(collection, given)
    transcode(collection, codec_of("int8"))


def _export(collection: ImageCollection, given: dict[str, Any]) -> None:
    if not given.get("exported"):
        export_collection(collection, given["archive"])
        given["exported"] = True


def _delete(collection: ImageCollection, given: dict[str, Any]) -> None:
    for image_id in given["ids"]:
        collection.delete([image_id])
        collection.flush()
    compact(collection)


Act = Callable[[ImageCollection, dict[str, Any]], Any]

# What is done, and the collection it is done to.
OPERATIONS: dict[str, tuple[str, Act]] = {
    "ingest": ("", _ingest),
    "add": ("half", _ingest),
    "switch": ("half", _switch),
    "compact": ("holed", lambda collection, _: compact(collection)),
    "transcode-int8": ("plain", lambda collection, _: transcode(collection, codec_of("int8"))),
    "transcode-pq16": ("plain", lambda collection, g: transcode(collection, codec_of(g["book"]))),
    "export": ("plain", _export),
    "delete": ("plain", _delete),
    "repair": ("damaged", lambda collection, _: repair(collection, model(), batch_size=2)),
}
# What one does who goes on with the collection after the error, if not the same again.
GOING_ON: dict[str, Act] = {"switch": _ingest}


def undisturbed(
    pipe: int, root: str, scratch: str, operation: str, given: dict[str, Any], number: int
) -> dict[str, Any]:
    """Do an operation without a fault; return how many calls it makes, and what it leads to."""
    folder = _start(root, f"{scratch}/undisturbed", operation)
    given = {**given, "archive": str(folder / "archive")}
    faults = Faults(folder, number=number)
    with faults.installed(), _opened(folder, operation) as collection:
        OPERATIONS[operation][1](collection, given)
    after = _after(folder, given)
    assert not after["findings"]
    shutil.rmtree(folder)
    return {"calls": faults.calls, "after": after}


def fault_cases(
    pipe: int,
    root: str,
    scratch: str,
    operation: str,
    given: dict[str, Any],
    expected: dict[str, Any],
    faults: list[dict[str, Any]],
) -> list[list[str]]:
    """Do an operation once for each fault; return what failed first, and the error's class.

    Raises:
        AssertionError: An error is none of ours, or running it again does not make all well.
    """
    done = []
    for number, fault in enumerate(faults):
        folder = _start(root, f"{scratch}/{number}", operation)
        here = {**given, "archive": str(folder / "archive")}
        system = Faults(folder, **fault)
        try:
            came = _disturbed(folder, operation, here, system)
            with _opened(folder, operation) as collection:
                OPERATIONS[operation][1](collection, here)
            after = _after(folder, here)
            if fault["number"] == errno.EIO:  # what cannot be deleted stays, hidden
                after["beside"] = [name for name in after["beside"] if name[0] != "."]
            assert after == expected, "not what it is undisturbed"
            assert system.failed, "nothing failed"
            assert came != "none", "nothing was said"
        except Exception as error:
            what = f"{type(error).__name__} {error}"
            raise AssertionError(f"{operation}, {fault}, {system.failed[:3]}: {what}") from error
        done.append([system.failed[0], came])
        shutil.rmtree(folder)
    return done


def _disturbed(folder: Path, operation: str, given: dict[str, Any], system: Faults) -> str:
    """Do an operation while the system refuses a call; go on with the collection when it is over.

    Returns:
        The class of the error; it is ours, or this raises what came.
    """
    act = OPERATIONS[operation][1]
    collection = None
    came, said = "none", str(folder)
    with system.installed():
        try:
            collection = _opened(folder, operation)
            act(collection, given)
        except StoreError as error:
            came, said = type(error).__name__, str(error)
    assert str(folder) in said, "the error does not say where"
    if collection is None:
        return came
    with collection, suppress(StoreError):  # it may say that it has to be opened again
        GOING_ON.get(operation, act)(collection, given)
    return came


def _start(root: str, scratch: str, operation: str) -> Path:
    """Make the folder that an operation is done in."""
    folder = Path(scratch)
    folder.parent.mkdir(parents=True, exist_ok=True)
    template = OPERATIONS[operation][0]
    if template:
        return copy_folder(Path(root) / template, folder)
    folder.mkdir()
    return folder


def _opened(folder: Path, operation: str) -> ImageCollection:
    if operation == "repair":
        return ImageCollection.open(folder, "images", for_repair=True)
    return opened(str(folder))


def _after(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    archive = Path(given["archive"])
    with ImageCollection.open(folder, "images") as collection:
        state = state_of(collection)
    state["archive"] = hashlib.sha256(archive.read_bytes()).hexdigest() if archive.exists() else ""
    state["beside"] = sorted(path.name for path in folder.iterdir())
    return state


def full_disk(
    pipe: int, mount: str, pictures: list[str], kilobytes: int, spare: bool
) -> dict[str, Any]:
    """Ingest into a small disk that fills up, make it larger, and ingest again.

    Args:
        pipe: To the server.
        mount: A folder, where the disk appears to this process alone.
        images: To ingest.
        kilobytes: The disk's size at first.
        spare: Whether the embedded index keeps away from the end of the disk, as it does.

    Returns:
        How the first run ended, and the collection's state after the second; nothing where the
        system does not let a user mount anything.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_USER | _NEW_MOUNTS) != 0:
        return {}
    for name, text in (
        ("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1"),
    ):  # fmt: skip
        Path(f"/proc/self/{name}").write_text(text)

    def mounted(flags: int, size: str) -> bool:
        arguments = (b"none", mount.encode(), b"tmpfs", flags, f"size={size}".encode())
        return bool(libc.mount(*arguments) == 0)

    if not mounted(0, f"{kilobytes}k"):
        return {}
    folder = f"{mount}/collection"
    if not spare:
        index_folder._SPARE_BYTES = -(1 << 40)
    first = _in_a_fork(lambda: ingest(folder, pictures))
    free = shutil.disk_usage(mount).free
    assert mounted(_REMOUNT, "1g")
    second = _in_a_fork(lambda: ingest(folder, pictures))
    assert second == 0, f"the second run ended with {second}"
    with ImageCollection.open(folder, "images") as collection:
        return {"first": first, "free": free, "state": state_of(collection)}


def _in_a_fork(act: Callable[[], None]) -> int:
    """Do something in a child; return 0, 3 for an error of ours about the disk, or minus a signal.

    The system ends a process that touches a page of a map for which the disk has no room.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            act()
            status = 0
        except StoreError as error:
            status = 3 if "no space left" in str(error).lower() else 4
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
