"""Aliases of collections on a Qdrant server."""

from __future__ import annotations

from edje_qdrant.errors import CollectionNotFoundError, ConfigError
from edje_qdrant.index.qdrant.connection import Connection

__all__ = ["collection_of"]


def collection_of(connection: Connection, name: str) -> str:
    """Return the collection that a name stands for now: the alias's, or the name itself.

    A key may be one that lists no aliases, or not this one. Then the name itself is returned, and
    each request goes to the collection that the alias names at that time: what protects is that the
    contract is read again before each write, and that points name the model that wrote them.

    Raises:
        EngineUnavailableError: The server cannot be reached.
        StoreError: It failed.
    """
    try:
        aliases = connection.call(name, connection.client.get_aliases).aliases
    except (ConfigError, CollectionNotFoundError):  # refused, or a proxy has no such route
        return name
    return next((each.collection_name for each in aliases if each.alias_name == name), name)
