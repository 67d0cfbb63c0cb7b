"""Collections on a server: the stand-in over REST and gRPC, or the one in EDJE_QDRANT_URL."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from collection_places import CONTRACT
from grpc_stand_in import GrpcStandIn
from index_stand_in import StandIn
from qdrant_client import QdrantClient, models

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.contract import TokenContract

OTHER = replace(CONTRACT, adapter_hash="a1", model="other")

SERVERS = [
    "rest",
    pytest.param("grpc", marks=pytest.mark.slow),
    pytest.param("server", marks=pytest.mark.qdrant_server),
    pytest.param("server grpc", marks=pytest.mark.qdrant_server),
]


@dataclass
class Server:
    """A server, and the names of a test's collections there."""

    client: QdrantClient
    prefix: str

    def name(self, name: str) -> str:
        return self.prefix + name

    def create(self, name: str, contract: TokenContract = CONTRACT, **more: Any) -> ImageCollection:
        return ImageCollection.create(self.client, self.name(name), contract, **more)

    def open(self, name: str) -> ImageCollection:
        return ImageCollection.open(self.client, self.name(name))

    def point(self, alias: str, to: str) -> None:
        """Move an alias to a collection, in one request."""
        of, alias = self.name(to), self.name(alias)
        made = models.CreateAlias(collection_name=of, alias_name=alias)
        gone = models.DeleteAlias(alias_name=alias)
        known = {each.alias_name for each in self.client.get_aliases().aliases}
        actions: list[Any] = [models.CreateAliasOperation(create_alias=made)]
        if alias in known:
            actions.insert(0, models.DeleteAliasOperation(delete_alias=gone))
        self.client.update_collection_aliases(actions)

    def replace(self, name: str, contract: TokenContract = OTHER) -> None:
        """Delete a collection, and make an empty one of another model with the same name."""
        self.client.delete_collection(self.name(name))
        self.create(name, contract).close()

    def stored(self, name: str) -> dict[str, Any]:
        records, _ = self.client.scroll(self.name(name), limit=1000)
        return {str(record.id): record.payload for record in records}


def served(kind: str) -> Iterator[Server]:
    """Yield a server of one of `SERVERS`; the test's collections are deleted at the end."""
    prefix = f"edje-test-{uuid.uuid4().hex[:8]}-"
    if kind == "rest":
        with StandIn() as stand_in:
            client = QdrantClient(url=stand_in.url, check_compatibility=False)
            yield Server(client, prefix)
            client.close()
        return
    if kind == "grpc":
        with GrpcStandIn() as grpc_stand_in:
            client = grpc_stand_in.client(timeout=60)
            yield Server(client, prefix)
            client.close()
        return
    url, port = os.environ.get("EDJE_QDRANT_URL"), os.environ.get("EDJE_QDRANT_GRPC_PORT")
    if not url or (kind == "server grpc" and not port):
        pytest.skip("EDJE_QDRANT_URL, or EDJE_QDRANT_GRPC_PORT, names no server")
    grpc = {"prefer_grpc": True, "grpc_port": int(str(port))} if "grpc" in kind else {}
    client = QdrantClient(url=url, check_compatibility=False, **grpc)
    yield Server(client, prefix)
    for collection in client.get_collections().collections:
        if collection.name.startswith(prefix):
            client.delete_collection(collection.name)
    client.close()
