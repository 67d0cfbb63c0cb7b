"""The base of backends that keep an index in a folder: create, open, lock, metadata, close."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from typing_extensions import Self

from edje_qdrant.errors import EdjeError, StoreError
from edje_qdrant.files import sync_folder
from edje_qdrant.index.backend import Backend
from edje_qdrant.index.folder import (
    gone_folder,
    lock_folder,
    read_metadata,
    refuse_existing,
    reporting,
    require_existing,
    require_space,
    write_metadata,
)
from edje_qdrant.index.validate import check_dim, check_metadata
from edje_qdrant.index.words import TextFields

__all__ = ["FolderBackend"]


class _Engine(Protocol):
    def close(self) -> None: ...


E = TypeVar("E", bound=_Engine)


class FolderBackend(Backend, Generic[E]):
    """A backend whose engine works in this process, on a folder that one process opens at a time.

    Attributes:
        subfolder: Name of the engine's own folder within the index's.
    """

    subfolder: ClassVar[str]
    batch_size = 1024

    def __init__(
        self, folder: Path, dim: int, metadata: dict[str, Any], engine: E, *, read_only: bool
    ) -> None:
        self.dim = dim
        self.metadata = metadata
        self._folder = folder
        self._engine: E | None = engine
        self._because: Callable[[], EdjeError] | None = None
        self.read_only = read_only
        self._held = ExitStack()
        self._closing = Lock()

    @staticmethod
    @abstractmethod
    def _create(folder: Path, dim: int, *, words: bool) -> None:
        """Make the engine's empty files in `folder`, which does not exist yet.

        Args:
            folder: Where.
            dim: Width of the vectors.
            words: Whether points have words beside their vector.
        """

    @staticmethod
    @abstractmethod
    def _load(folder: Path, dim: int, *, read_only: bool) -> E:
        """Open the engine's files in `folder`."""

    @staticmethod
    @contextmanager
    def _readable(folder: Path) -> Iterator[Path]:
        """Yield a folder in which the engine can open files of `folder` that it may only read."""
        yield folder

    @classmethod
    def create(cls, folder: Path, dim: int, metadata: Mapping[str, Any]) -> Self:
        """Make an empty index of `dim`-wide vectors in `folder`, which may exist already.

        Raises:
            ConfigError: `dim` is below 1, or the metadata is not a JSON object.
            StoreError: The folder holds an index already, or cannot be written.
            CollectionLockedError: Another process is making or using one there.
        """
        kept = check_metadata(metadata)
        check_dim(dim)
        refuse_existing(folder)
        with reporting(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            undo.enter_context(closing(lock_folder(folder)))
            refuse_existing(folder)  # another process may have been quicker
            with reporting(folder):
                # The rename is what makes the index exist: a crash before it leaves a folder that
                # `create` accepts and `open` reports as empty.
                fresh = folder / f"{cls.subfolder}.new"
                shutil.rmtree(fresh, ignore_errors=True)
                require_space(folder)
                cls._create(fresh, dim, words=TextFields.read(kept) is not None)
                write_metadata(folder, dim, kept)
                fresh.rename(folder / cls.subfolder)
                sync_folder(folder)
            return cls._opened(folder, dim, kept, undo)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the index in `folder`; read-only, if this user may not write to it.

        Raises:
            CollectionNotFoundError: There is none; names those beside it.
            CollectionLockedError: It is open already, here or in another process.
            StoreError: It cannot be read.
        """
        require_existing(folder, cls.subfolder)
        with ExitStack() as undo:
            lock = undo.enter_context(closing(lock_folder(folder, readable=True)))
            with reporting(folder):
                dim, metadata = read_metadata(folder)
            return cls._opened(folder, dim, metadata, undo, read_only=lock.read_only)

    @classmethod
    def _opened(
        cls, folder: Path, dim: int, metadata: dict[str, Any], undo: ExitStack,
        *, read_only: bool = False,
    ) -> Self:  # fmt: skip
        with reporting(folder):
            place = folder / cls.subfolder
            if read_only:
                place = undo.enter_context(cls._readable(place))
            engine = undo.enter_context(closing(cls._load(place, dim, read_only=read_only)))
            backend = cls(folder, dim, metadata, engine, read_only=read_only)
        backend._held = undo.pop_all()  # the backend closes them from here on
        return backend

    @contextmanager
    def _using(self) -> Iterator[E]:
        """Yield the engine; translate its errors.

        Raises:
            StoreError: The index is closed, or the engine failed.
        """
        engine = self._engine
        closed = f"the index at {self._folder} is closed; open it again"
        if engine is None:
            raise self._closed_error(closed)
        try:
            with reporting(self._folder):
                yield engine
        except StoreError as error:
            if self._engine is None:  # another thread closed it during the call
                raise self._closed_error(closed) from error
            raise

    def check_open(self) -> None:
        with self._using():
            pass

    def check_writable(self) -> None:
        self.check_open()
        if self.read_only:
            raise StoreError(
                f"the index at {self._folder} is open read-only, as this user may not write to it; "
                "change its permissions, or copy the folder and write to the copy"
            )

    def set_metadata(self, metadata: dict[str, Any]) -> None:
        with self._closing, self._using():  # the folder stays locked until the file is written
            write_metadata(self._folder, self.dim, metadata)
            self.metadata = metadata

    def reload_metadata(self) -> None:
        with self._closing, self._using():
            self.metadata = read_metadata(self._folder)[1]

    def _closed_error(self, text: str) -> EdjeError:
        return StoreError(text) if self._because is None else self._because()

    def remove(self) -> None:
        self.check_writable()
        self.close()
        with reporting(self._folder):
            # Renamed first, so that a killed run leaves nothing that looks like an index.
            gone = gone_folder(self._folder)
            shutil.rmtree(gone, ignore_errors=True)
            self._folder.rename(gone)
            shutil.rmtree(gone)

    def close(self, because: Callable[[], EdjeError] | None = None) -> None:
        with self._closing:
            engine, self._engine = self._engine, None
            self._because = self._because or because
        if engine is None:
            return
        with reporting(self._folder), self._held:
            self._before_close(engine)

    def _before_close(self, engine: E) -> None:
        """Flush what the engine has not written yet."""
