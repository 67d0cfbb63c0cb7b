"""Every exception this package raises on purpose.

The tree::

    EdjeError
    ├── ConfigError (also ValueError)
    ├── CheckpointError
    ├── ImageReadError
    ├── StoreError
    │   ├── CollectionNotFoundError
    │   ├── CollectionLockedError
    │   ├── TokensNotFoundError
    │   ├── TokensCorruptError
    │   └── ContractMismatchError
    ├── EngineUnavailableError
    ├── BusyError
    ├── MissingExtraError (also ImportError)
    ├── UnsupportedVersionError (also ImportError)
    └── WorkerDiedError

Each error carries its data as attributes, and its message says what to do next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edje_qdrant.version import LOWEST

__all__ = [
    "BusyError",
    "CheckpointError",
    "CollectionLockedError",
    "CollectionNotFoundError",
    "ConfigError",
    "ContractMismatchError",
    "EdjeError",
    "EngineUnavailableError",
    "ImageReadError",
    "MissingExtraError",
    "StoreError",
    "TokensCorruptError",
    "TokensNotFoundError",
    "UnsupportedVersionError",
    "WorkerDiedError",
]


class EdjeError(Exception):
    """Stand at the root: catch this to catch everything the package raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what the error says and carries, so that it crosses from process to process."""
        return _unpickled, (type(self), self.args), self.__dict__


class ConfigError(EdjeError, ValueError):
    """Refuse an argument or a setting; nothing was read or written."""


class CheckpointError(EdjeError):
    """Refuse a model's weights: unreadable, incomplete or of the wrong shape.

    Attributes:
        path: The file or folder.
        missing: Keys the model needs and the checkpoint lacks.
        mismatched: Key -> (shape the model needs, shape found).
    """

    def __init__(
        self,
        message: str,
        *,
        path: str = "",
        missing: Sequence[str] = (),
        mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
    ) -> None:
        super().__init__(message)
        self.path = path
        self.missing = tuple(missing)
        self.mismatched = dict(mismatched or {})


class ImageReadError(EdjeError):
    """Refuse an image: missing, unreadable, or with too many pixels.

    Attributes:
        path: The image's path.
        reason: Why, in a few words.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read image {path}: {reason}")
        self.path = path
        self.reason = reason


class StoreError(EdjeError):
    """Report trouble with a collection's files or its vector engine."""


class CollectionNotFoundError(StoreError):
    """Report that there is no such collection.

    Attributes:
        location: The folder or address looked in.
        name: The collection's name.
        known: Names that do exist there.
    """

    def __init__(self, location: str, name: str, known: Sequence[str] = ()) -> None:
        there = f"it holds {', '.join(known)}" if known else "it holds none"
        super().__init__(
            f"no collection {name!r} at {location} ({there}); "
            "create one with `edje-qdrant ingest` or ImageCollection.create"
        )
        self.location = location
        self.name = name
        self.known = tuple(known)


class CollectionLockedError(StoreError):
    """Report that another process holds the embedded engine's folder.

    Attributes:
        location: The folder.
    """

    def __init__(self, location: str) -> None:
        super().__init__(
            f"the collection at {location} is open in another process; close that one first, "
            "or serve the collection from a Qdrant server, which many may open at once"
        )
        self.location = location


class TokensNotFoundError(StoreError):
    """Report images whose tokens are not in the store.

    Attributes:
        image_ids: The images' ids.
    """

    def __init__(self, message: str, image_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.image_ids = tuple(image_ids)


class TokensCorruptError(StoreError):
    """Report stored tokens whose bytes are not what was written; they are never scored.

    Attributes:
        image_ids: The images' ids, where known.
    """

    def __init__(self, message: str, image_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.image_ids = tuple(image_ids)


class ContractMismatchError(StoreError):
    """Refuse to mix what two different models (or settings) wrote.

    Attributes:
        expected: Field -> value on the side that asks.
        found: Field -> value on the side that was written; the same fields.
    """

    def __init__(self, message: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.expected = dict(expected)
        self.found = dict(found)


class EngineUnavailableError(EdjeError):
    """Report that the vector engine cannot be reached; what was acknowledged is kept.

    Attributes:
        location: The engine's address.
    """

    def __init__(self, message: str, *, location: str = "") -> None:
        super().__init__(message)
        self.location = location


class BusyError(EdjeError):
    """Turn a request away because as many wait already as may; nothing was done.

    Attributes:
        waiting: How many wait.
    """

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests wait already, as many as may; ask again in a moment")
        self.waiting = waiting


class MissingExtraError(EdjeError, ImportError):
    """Report that an optional dependency is not installed.

    Attributes:
        extra: The extra that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'edje-qdrant[{extra}]'")
        self.extra = extra


class UnsupportedVersionError(EdjeError, ImportError):
    """Report that an installed package is too old to work.

    Attributes:
        package: The package's name.
        found: The installed version.
        required: The lowest version that works.
    """

    def __init__(self, package: str, found: str, required: str) -> None:
        super().__init__(
            f"{package} {found} is installed, which is known to fail; "
            f"run: pip install '{package}>={required}'"
        )
        self.package = package
        self.found = found
        self.required = required

    @classmethod
    def check(cls, package: str) -> None:
        """Raise this error if the installed version of a package is lower than required."""
        from importlib.metadata import PackageNotFoundError, version  # not at `import edje_qdrant`

        try:
            found = version(package)
        except PackageNotFoundError:
            return  # whatever imports it says so
        required = LOWEST[package]
        if _numbers(found) < _numbers(required):
            raise cls(package, found, required)


class WorkerDiedError(EdjeError):
    """Report processes of a run that died more often than was allowed; what they wrote is kept."""


def _numbers(version: str) -> tuple[int, ...]:
    """Return major and minor."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _unpickled(kind: type[EdjeError], args: tuple[Any, ...]) -> EdjeError:
    """Make an error without its constructor, which wants what the message was made of."""
    error = kind.__new__(kind)
    error.args = args
    return error
