"""What a kind of server does to be read: one try of a request, and what it raises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import error_reason

__all__ = ["AwayError", "RemoteObject", "RemoteStore", "reason_of", "too_large"]


class AwayError(Exception):
    """A request failed in a way that may pass: it is tried again.

    Attributes:
        pause: Seconds after which the server says that it can be asked again; None if it does not.
    """

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """Hold what is known of an object without reading it.

    Attributes:
        uri: Its address.
        size: In bytes; None if it is not known.
        stamp: `etag`, or `file_size` and `modified_at`; empty if the server gives neither.
    """

    uri: str
    size: int | None = None
    stamp: Mapping[str, Any] = field(default_factory=dict)


class RemoteStore(ABC):
    """One kind of server; its methods make one try each. Safe in threads.

    They raise ImageReadError for what will not pass, such as a missing object, and `AwayError` for
    what may.
    """

    @abstractmethod
    def about(self, uri: str) -> RemoteObject:
        """Return what is known of an object."""

    @abstractmethod
    def read(
        self, uri: str, start: int | None, end: int | None, max_bytes: int
    ) -> tuple[bytes, Mapping[str, Any]]:
        """Return an object's bytes, or those from `start` to before `end`, and its stamp."""

    @abstractmethod
    def objects(self, prefix: str) -> list[RemoteObject]:
        """Return the objects whose addresses begin with a prefix or match a pattern, by name.

        Raises:
            ConfigError: This kind of server has no lists.
        """


def too_large(uri: str, size: int, max_bytes: int) -> ImageReadError:
    """Return the error for an object that has more bytes than are read."""
    return ImageReadError(uri, f"a file of {size} bytes; no more than {max_bytes} are read")


def reason_of(error: BaseException) -> str:
    """Return an error's kind and message in one line."""
    text = error_reason(error) if isinstance(error, Exception) else str(error)
    kind = type(error).__name__
    return text if text == kind else f"{kind}: {text}"
