"""Objects of S3, Google Cloud Storage and the Hugging Face hub, by fsspec."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from edje_qdrant.errors import ImageReadError, MissingExtraError
from edje_qdrant.images import error_reason
from edje_qdrant.index.moments import moment_text
from edje_qdrant.sources.remote_store import (
    AwayError,
    RemoteObject,
    RemoteStore,
    reason_of,
    too_large,
)

__all__ = ["BucketStore"]

# Scheme -> package and extra; the Hugging Face hub needs none.
_EXTRAS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}
# Errors that will not pass, by the names of classes of libraries that need not be installed.
_LASTING = frozenset({
    "NoCredentialsError", "PartialCredentialsError", "NoRegionError", "ParamValidationError",
    "ProfileNotFound", "RepositoryNotFoundError", "GatedRepoError", "EntryNotFoundError",
    "DefaultCredentialsError", "RefreshError",
})  # fmt: skip
_PATTERN = "*?["


class BucketStore(RemoteStore):
    """Read objects of one scheme.

    Credentials and addresses of servers are found where the scheme's own library finds them, such
    as `AWS_PROFILE` and `AWS_ENDPOINT_URL`, or fsspec's settings (`FSSPEC_S3_ANON=true`).

    Args:
        scheme: `s3`, `gs` or `hf`.

    Raises:
        MissingExtraError: Its library is not installed.
    """

    def __init__(self, scheme: str) -> None:
        import fsspec

        options: dict[str, Any] = {}
        if scheme == "s3":
            limits = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 2}}
            options["config_kwargs"] = limits
            logging.getLogger("s3fs").setLevel(logging.ERROR)
        try:
            # Not cached: an object may change between two ingests of one process.
            self._files = fsspec.filesystem(
                scheme, use_listings_cache=False, skip_instance_cache=True, **options
            )
        except ImportError as error:
            raise MissingExtraError(*_EXTRAS[scheme]) from error
        self._scheme = scheme

    def about(self, uri: str) -> RemoteObject:
        """Return what the store says of an object."""
        return self._object(uri, self._called(uri, self._files.info, uri))

    def read(
        self, uri: str, start: int | None, end: int | None, max_bytes: int
    ) -> tuple[bytes, Mapping[str, Any]]:
        """Return an object's bytes; its stamp is that of the listing."""
        if start is None:  # how much would be read is not known otherwise
            found = self.about(uri)
            if (found.size or 0) > max_bytes:
                raise too_large(uri, found.size or 0, max_bytes)
        else:
            found = RemoteObject(uri)
        data = bytes(self._called(uri, self._files.cat_file, uri, start=start, end=end))
        return data, found.stamp

    def objects(self, prefix: str) -> list[RemoteObject]:
        """Return them by name; hidden objects, and those in hidden folders, are left out."""
        if any(sign in prefix for sign in _PATTERN):
            found = self._called(prefix, self._files.glob, prefix, detail=True)
        else:
            found = self._called(prefix, self._files.find, prefix.rstrip("/"), detail=True)
        listed = []
        base = prefix.partition("://")[2].rstrip("/")
        for name in sorted(found):
            inside = name[len(base) :] if name.startswith(base) else name.rpartition("/")[2]
            hidden = any(part.startswith(".") for part in inside.split("/"))
            if found[name].get("type") == "file" and not hidden:
                listed.append(self._object(f"{self._scheme}://{name}", found[name]))
        return listed

    def _object(self, uri: str, info: Mapping[str, Any]) -> RemoteObject:
        if info.get("type") != "file":
            raise ImageReadError(uri, "a folder, and no object")
        size = info.get("size")
        etag = info.get("ETag") or info.get("etag") or info.get("blob_id")
        if etag:
            return RemoteObject(uri, size, {"etag": str(etag).strip('"')})
        changed = info.get("LastModified") or info.get("updated") or info.get("last_modified")
        if isinstance(changed, datetime) and size is not None:
            moment = moment_text(changed.astimezone(timezone.utc))
            return RemoteObject(uri, size, {"file_size": size, "modified_at": moment})
        return RemoteObject(uri, size)

    def _called(self, uri: str, function: Any, *args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except FileNotFoundError as error:
            raise ImageReadError(uri, "there is nothing at this address") from error
        except PermissionError as error:
            raise ImageReadError(uri, f"it may not be read: {error_reason(error)}") from error
        except Exception as error:  # the libraries raise errors of many types
            if isinstance(error, TypeError | ValueError) or type(error).__name__ in _LASTING:
                raise ImageReadError(uri, reason_of(error)) from error
            raise AwayError(reason_of(error)) from error
