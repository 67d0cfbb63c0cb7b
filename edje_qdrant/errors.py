"""Exceptions of this package.

The tree::

    EdjeError
    ├── ConfigError (also ValueError)
    │   ├── ImagesNotFoundError
    │   ├── KeyRefusedError
    │   └── UnknownOptionError (also TypeError)
    ├── CheckpointError
    ├── ImageReadError
    ├── StoreError
    │   ├── CollectionNotFoundError
    │   ├── CollectionExistsError
    │   ├── CollectionLockedError
    │   ├── TokensNotFoundError
    │   │   └── ImagesDeletedError
    │   ├── TokensCorruptError
    │   └── ContractMismatchError
    ├── EngineUnavailableError
    │   └── RateLimitedError
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

__all__ = [
    "BusyError",
    "CheckpointError",
    "CollectionExistsError",
    "CollectionLockedError",
    "CollectionNotFoundError",
    "ConfigError",
    "ContractMismatchError",
    "EdjeError",
    "EngineUnavailableError",
    "ImageReadError",
    "ImagesDeletedError",
    "ImagesNotFoundError",
    "KeyRefusedError",
    "MissingExtraError",
    "RateLimitedError",
    "StoreError",
    "TokensCorruptError",
    "TokensNotFoundError",
    "UnknownOptionError",
    "UnsupportedVersionError",
    "WorkerDiedError",
]

#: Older versions of these packages are known to fail; pyproject.toml has the same bounds.
LOWEST = {"qdrant-client": "1.20", "transformers": "5.3"}


# In addresses: what stands before the host, and values of parameters that are named like secrets.
_USER = re.compile(r"(?<=://)[^\s/?#'\"]*@")
_SECRET = re.compile(
    r"([?&;][\w.-]*(?:key|token|secret|passw|pwd|auth|credential|signature|sig)[\w.-]*=)"
    r"[^&;\s'\"#)]+",
    re.IGNORECASE,
)


def without_keys(text: str) -> str:
    """Return a text with users, passwords and keys in addresses replaced by `***`.

    Example:
        >>> without_keys("no answer from http://me:secret@host:6333/path?api_key=secret&x=1")
        'no answer from http://***@host:6333/path?api_key=***&x=1'
    """
    return _SECRET.sub(r"\1***", _USER.sub("***@", text)) if "://" in text else text


# What is longer loses its middle: characters without white space (an image in base64), a message.
_LONGEST_RUN, _LONGEST_MESSAGE = 400, 8_000
_LONG_RUN = re.compile(rf"\S{{{_LONGEST_RUN},}}")


def without_long_values(text: str) -> str:
    """Return a message in which the middle of long values is replaced by its number of characters.

    Example:
        >>> without_long_values("cannot read " + 1_000 * "A")[:210].count("A")
        160
        >>> without_long_values("cannot read " + 1_000 * "A")[172:213]
        '... (760 characters left out) ...AAAAAAAA'
    """
    if len(text) < _LONGEST_RUN:
        return text
    shorter = _LONG_RUN.sub(lambda found: _without_middle(found[0], 160, 80), text)
    if len(shorter) > _LONGEST_MESSAGE:
        shorter = _without_middle(shorter, _LONGEST_MESSAGE * 3 // 4, _LONGEST_MESSAGE // 8)
    return shorter


def _without_middle(text: str, first: int, last: int) -> str:
    return f"{text[:first]}... ({len(text) - first - last:,} characters left out) ...{text[-last:]}"


class EdjeError(Exception):
    """Base class of all exceptions that the package raises deliberately.

    Messages, and texts among the attributes, contain no keys or passwords of addresses. Messages
    contain no long values, such as an image in base64.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(
            *(without_long_values(without_keys(a)) if isinstance(a, str) else a for a in args)
        )

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, without_keys(value) if isinstance(value, str) else value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle message and attributes, so that errors can be sent between processes."""
        return _unpickled, (type(self), self.args), self.__dict__


class ConfigError(EdjeError, ValueError):
    """Report an invalid argument or setting; nothing was read or written."""


class ImagesNotFoundError(ConfigError):
    """Report ids that name no image of the collection.

    Attributes:
        image_ids: The ids.
    """

    def __init__(self, message: str, image_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.image_ids = tuple(image_ids)


class UnknownOptionError(ConfigError, TypeError):
    """Report options that do not exist; nothing was read or written.

    Attributes:
        options: Their names.
    """

    def __init__(self, message: str, options: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.options = tuple(options)


class KeyRefusedError(ConfigError):
    """Report that a server refused the API key, or has refused this request of it (401, 403).

    Attributes:
        location: Address of the server.
    """

    def __init__(self, message: str, *, location: str = "") -> None:
        super().__init__(message)
        self.location = location


class CheckpointError(EdjeError):
    """Report weights of a model that are unreadable, incomplete or of the wrong shape.

    Attributes:
        path: The file or folder.
        missing: Keys that the model needs and the checkpoint does not contain.
        mismatched: Key -> (expected shape, shape found).
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
    """Report an image that is missing, unreadable, or too large.

    Attributes:
        path: Path of the image.
        reason: Short reason.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read image {path}: {reason}")
        self.path = path
        self.reason = reason


class StoreError(EdjeError):
    """Report a problem with a collection's files or its vector engine."""


class CollectionNotFoundError(StoreError):
    """Report that a collection does not exist.

    Attributes:
        location: Folder or address.
        name: Name of the collection.
        known: Names of existing collections.
    """

    def __init__(
        self, location: str, name: str, known: Sequence[str] = (), alias: str | None = None
    ) -> None:
        there = f"it holds {', '.join(known)}" if known else "it holds none"
        remedy = (
            "create one with `edje-qdrant ingest` or ImageCollection.create"
            if alias is None
            else f"the alias {alias!r} stood for it when it was opened: open the alias again"
        )
        super().__init__(f"no collection {name!r} at {location} ({there}); {remedy}")
        self.location = location
        self.name = name
        self.known = tuple(known)


class CollectionExistsError(StoreError):
    """Report that a new collection's place is taken, perhaps since another process looked.

    Attributes:
        location: Folder or address.
        name: Name of the collection.
    """

    def __init__(self, location: str, name: str) -> None:
        super().__init__(
            f"there is a collection {name!r} at {location} already; open it, or choose another name"
        )
        self.location = location
        self.name = name


class CollectionLockedError(StoreError):
    """Report that the embedded engine's folder is open already, here or in another process.

    Attributes:
        location: The folder.
        same_process: Whether this process has it open.
    """

    def __init__(self, location: str, *, same_process: bool = False) -> None:
        message = (
            f"the collection at {location} is open in another process; close that one first, "
            "or serve the collection from a Qdrant server, which many may open at once"
        )
        if same_process:
            message = (
                f"the collection at {location} is open in this process already; use the object "
                "that has it open, or call its close() first"
            )
        super().__init__(message)
        self.location = location
        self.same_process = same_process


class TokensNotFoundError(StoreError):
    """Report images whose tokens are not in the store.

    Attributes:
        image_ids: Ids of the images.
    """

    def __init__(self, message: str, image_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.image_ids = tuple(image_ids)


class ImagesDeletedError(TokensNotFoundError):
    """Report candidates whose images were deleted since they were found.

    Attributes:
        image_ids: Ids of the images.
    """


class TokensCorruptError(StoreError):
    """Report stored tokens whose bytes differ from those written; they are never scored.

    Attributes:
        image_ids: Ids of the images, if known.
    """

    def __init__(self, message: str, image_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.image_ids = tuple(image_ids)


class ContractMismatchError(StoreError):
    """Report data written by another model, or with other settings.

    Attributes:
        expected: Field -> expected value.
        found: Field -> value found; the same fields.
    """

    def __init__(self, message: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.expected = dict(expected)
        self.found = dict(found)


class EngineUnavailableError(EdjeError):
    """Report that the vector engine cannot be reached; acknowledged writes are kept.

    Attributes:
        location: Address of the engine.
    """

    def __init__(self, message: str, *, location: str = "") -> None:
        super().__init__(message)
        self.location = location


class RateLimitedError(EngineUnavailableError):
    """Report that the vector engine refused a request because it had too many (HTTP 429).

    Raised where waiting does not fit into the time of the call. The refused request did nothing.

    Attributes:
        location: Address of the engine.
        retry_after: Seconds after which the engine says it takes requests again; None if it does
            not say.
    """

    def __init__(
        self, message: str, *, location: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message, location=location)
        self.retry_after = retry_after


class BusyError(EdjeError):
    """Reject a request because the queue is full; nothing was done.

    Attributes:
        waiting: Number of requests in the queue.
    """

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests wait already, the limit; try again in a moment")
        self.waiting = waiting


class MissingExtraError(EdjeError, ImportError):
    """Report that an optional dependency is not installed.

    Attributes:
        extra: Name of the extra that installs it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'edje-qdrant[{extra}]'")
        self.extra = extra

    @classmethod
    def of(cls, error: ImportError) -> MissingExtraError | None:
        """Return this error for a missing torch or transformers; None for another import error."""
        package = (error.name or "").partition(".")[0]
        return cls(package, "torch") if package in ("torch", "transformers") else None


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
            return  # the import itself reports a missing package
        required = LOWEST[package]
        if _numbers(found) < _numbers(required):
            raise cls(package, found, required)


class WorkerDiedError(EdjeError):
    """Report that processes of a run died more often than allowed; written data is kept."""


def _numbers(version: str) -> tuple[int, ...]:
    """Return major and minor."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _unpickled(kind: type[EdjeError], args: tuple[Any, ...]) -> EdjeError:
    """Create an error without calling its constructor, whose arguments are not in `args`."""
    error = kind.__new__(kind)
    error.args = args
    return error
