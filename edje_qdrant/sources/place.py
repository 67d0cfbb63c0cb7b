"""One image of a list or a manifest, by the path or the address that it has there."""

from __future__ import annotations

import os
from functools import partial

from edje_qdrant.errors import ConfigError
from edje_qdrant.sources.protocol import Fetched, ListedImage
from edje_qdrant.sources.read import read_image
from edje_qdrant.sources.remote import about, fetch
from edje_qdrant.sources.remote_store import RemoteObject
from edje_qdrant.sources.uris import is_uri, joined, split_part, without_secrets
from edje_qdrant.types import Payload

__all__ = ["listed_at", "remote_image"]


def listed_at(path: str, fields: Payload, folder: str = "") -> ListedImage:
    """Return the image at a path: a file, an address, or a part of a container.

    Args:
        path: As it is written.
        fields: The image's fields.
        folder: What relative paths are relative to: a folder, or the address of a manifest; by
            default the working folder.

    Raises:
        ConfigError: It is an address of an unknown scheme, or with a password.
    """
    remote_folder = is_uri(folder)
    if is_uri(path) or remote_folder:
        uri = joined(folder, path) if remote_folder else path
        if "@" in uri.partition("://")[2].partition("/")[0]:
            raise ConfigError(
                f"{without_secrets(uri)} holds a password, which would be stored with the image; "
                "give the address without it"
            )
        if split_part(uri) is not None:
            return ListedImage(uri, fields, reader=partial(_part, uri))
        return ListedImage(
            uri, fields, reader=partial(_fetched, uri), look=lambda: about(uri).stamp
        )
    absolute = os.path.abspath(os.path.join(folder, path))
    if split_part(absolute) is not None and not os.path.exists(absolute):
        return ListedImage(absolute, fields, reader=partial(_part, absolute))
    return ListedImage(absolute, fields)


def remote_image(found: RemoteObject, fields: Payload) -> ListedImage:
    """Return an image that was listed with what its server says of it."""
    return ListedImage(found.uri, fields, reader=partial(_fetched, found.uri), stamp=found.stamp)


def _fetched(uri: str) -> Fetched:
    return Fetched(*fetch(uri))


def _part(path: str) -> Fetched:
    return Fetched(read_image(path))
