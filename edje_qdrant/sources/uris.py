"""Addresses of remote images, and parts of containers, as texts."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from edje_qdrant.errors import ConfigError

__all__ = [
    "SCHEMES",
    "check_prefix",
    "dataset_path",
    "in_memory_path",
    "is_below",
    "is_in_memory",
    "is_uri",
    "is_uri_of_image",
    "joined",
    "part_path",
    "split_part",
    "suffix_of",
    "without_secrets",
]

#: Schemes of the addresses that are read.
SCHEMES = ("http", "https", "s3", "gs", "hf")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# What names a part of a container: a member of a tar file, or a row of a table.
_PART = re.compile(r"(?s)(.+)#((?:member|row)=[^#]*)")


def is_uri(text: str) -> bool:
    """Return whether a text is an address of one of `SCHEMES`.

    Raises:
        ConfigError: It is an address of another scheme.
    """
    found = _SCHEME.match(text)
    if found is None:
        return False
    if found[1] not in SCHEMES:
        raise ConfigError(
            f"{without_secrets(text)} is an address of {found[1]}; give one of "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}, or a path"
        )
    return True


def is_uri_of_image(path: str) -> bool:
    """Return whether a stored path is an address, of a scheme that is read."""
    found = _SCHEME.match(path)
    return found is not None and found[1] in SCHEMES


def suffix_of(path: str) -> str:
    """Return the suffix of a path or an address in lower case; a query does not count."""
    if _SCHEME.match(path):
        path = unquote(urlsplit(path).path)
    return posixpath.splitext(path)[1].lower()


def in_memory_path(image_id: str) -> str:
    """Return the `path` of an image that a program passed as bytes or as a Pillow image."""
    return f"memory:{image_id}"


def dataset_path(fingerprint: str) -> str:
    """Return how the paths of the images of a data set begin that a program passed."""
    return f"datasets:{fingerprint}"


def is_in_memory(path: str) -> bool:
    """Return whether a path is of an image that was only in a program's memory."""
    return path.startswith(("memory:", "datasets:"))


def joined(base: str, path: str) -> str:
    """Return the address of a path that is relative to the folder of `base`, an address too."""
    if _SCHEME.match(path):
        return path
    scheme, _, rest = base.partition("://")
    host, _, folders = rest.partition("/")
    if path.startswith("/"):
        raise ConfigError(f"{path!r} in {base} is an absolute path; give an address")
    folder = posixpath.dirname(folders.partition("?")[0])
    found = posixpath.normpath(posixpath.join("/", folder, path)).lstrip("/")
    return f"{scheme}://{host}/{found}"


def part_path(container: str, **names: str | int) -> str:
    """Return the path of a part: `part_path("/a.tar", member="b c.jpg")`.

    Example:
        >>> part_path("/a.tar", member="b c.jpg")
        '/a.tar#member=b%20c.jpg'
        >>> part_path("/a.parquet", row=3, column="image")
        '/a.parquet#row=3&column=image'
    """
    return f"{container}#" + "&".join(
        f"{name}={quote(str(value), safe='/')}" for name, value in names.items()
    )


def split_part(path: str) -> tuple[str, Mapping[str, str]] | None:
    """Return the container and the names of a part in it; None for other paths."""
    found = _PART.fullmatch(path)
    if found is None:
        return None
    return found[1], dict(parse_qsl(found[2].replace("+", "%2B"), keep_blank_values=True))


def check_prefix(uri: str) -> None:
    """Check an address below which images may be read.

    Raises:
        ConfigError: It names no bucket or host, or its scheme is unknown.
    """
    if not is_uri(uri) or not uri.partition("://")[2].partition("/")[0]:
        raise ConfigError(
            f"{uri} is no address of images; give one with a bucket or a host, such as "
            "s3://bucket/photos/"
        )


def is_below(uri: str, prefix: str) -> bool:
    """Return whether an address is a prefix, or lies below it, whatever a server makes of `..`."""
    if not uri.startswith(prefix):
        return False
    inside = uri[len(prefix) :]
    if inside and not prefix.endswith("/") and inside[0] not in "/#":
        return False
    parts = re.split(r"[/\\]", unquote(unquote(inside.partition("#")[0])))
    return ".." not in parts


def without_secrets(uri: str) -> str:
    """Return an address without user, password and query, which may be a signature."""
    return re.sub(r"(://)[^/@]*@|\?[^#]*", r"\1", uri)
