"""A condition means the same on every engine, or is refused: 36 conditions, 7 kinds of index.

`recorded/filters.json` holds what servers, Edge and memory mode find when asked directly.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from grpc_stand_in import GrpcStandIn
from index_engines import edge_engine, faiss_engine, qdrant_engine, unit_vectors
from index_stand_in import StandIn
from qdrant_client import QdrantClient, models

from edje_qdrant.errors import ConfigError
from edje_qdrant.index import PayloadKind, VectorIndex
from edje_qdrant.index.filters.from_json import filter_from_json
from edje_qdrant.index.filters.match import compile_filter
from edje_qdrant.types import Point

TABLE = json.loads((Path(__file__).parent / "recorded/filters.json").read_bytes())
NAMES = [*TABLE["payloads"]]
IDS = {str(uuid.uuid5(uuid.NAMESPACE_OID, name)): n for n, name in enumerate(NAMES)}
KINDS = [*TABLE["found"]]
VERSIONS = ["1.18.3", "1.19.0"]
CONDITIONS: dict[str, Any] = TABLE["conditions"]

WORDS = [name for name in CONDITIONS if name.startswith(("text", "phrase"))]
NUMBER_RANGES = ["gte 1", "gt 0"]
#: Engine -> kind of index (None: any) -> what is refused there.
REFUSED: dict[str, dict[str | None, list[str]]] = {
    "faiss": {None: ["gt 2**53", "lt 2**53+1"]},
    "memory": {None: ["gt 2**53", "lt 2**53+1", "is_null a[].x=false"]},
    "edge": {
        None: ["gt 2**53", "lt 2**53+1", "slice 2/0"],
        "datetime": NUMBER_RANGES,
        "integer": ["date range"],
        "float": ["date range"],
    },
}
for version in VERSIONS:
    old = ["slice 2/0", "prefix 'Red'"] if version == "1.18.3" else []
    REFUSED[version] = {
        **REFUSED["edge"],
        None: ["gt 2**53", "lt 2**53+1", "substring 'ed'", *old],
        **dict.fromkeys(("None", "keyword", "bool"), WORDS),
        "integer": ["date range", *WORDS],
        "float": ["date range", *WORDS],
        "datetime": [*NUMBER_RANGES, *WORDS],
    }
#: Kind of index -> what it misses or misreads, as the field holds more than its kind.
MISFITS = {"keyword": ["except []"], "integer": ["match 1", "except [1]"]}


def recorded(kind: str, condition: str, engine: str) -> list[int] | str:
    """Return the payloads that an engine was recorded to find, or its refusal."""
    number = TABLE["engines"].index(engine)
    (found,) = (found for engines, found in TABLE["found"][kind][condition] if number in engines)
    return found


def points() -> list[Point]:
    payloads = zip(IDS, TABLE["payloads"].values(), strict=True)
    vectors = unit_vectors(len(NAMES))
    return [Point(i, vector, p) for (i, p), vector in zip(payloads, vectors, strict=True)]


def found_on(index: VectorIndex, condition: str) -> list[int] | str:
    try:
        pages = index.scroll(filter=filter_from_json({"must": [CONDITIONS[condition]]}))
        return sorted(IDS[point.id] for page in pages for point in page)
    except ConfigError:
        return "refused"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engines(kind: str, tmp_path: Path) -> Iterator[dict[str, VectorIndex]]:
    with ExitStack() as stack:
        client = QdrantClient(":memory:")
        stack.callback(client.close)
        made = {
            "faiss": faiss_engine(tmp_path / "faiss"),
            "edge": edge_engine(tmp_path / "edge"),
            "memory": qdrant_engine(client),
        }
        for version in VERSIONS:
            made[version] = qdrant_engine(stack.enter_context(StandIn(version)).url)
        indexes = {}
        for name, engine in made.items():
            indexes[name] = engine.create()
            stack.callback(engine.close)
            indexes[name].upsert(points())
            if kind != "None":
                indexes[name].create_payload_index("x", cast("PayloadKind", kind))
        yield indexes


def test_it_means_the_same_everywhere_or_is_refused(
    engines: dict[str, VectorIndex], kind: str
) -> None:
    for condition in CONDITIONS:
        meaning = found_on(engines["faiss"], condition)
        for name, index in engines.items():
            found = found_on(index, condition)
            refused = condition in [*REFUSED[name][None], *REFUSED[name].get(kind, [])]
            assert (found == "refused") == refused, (name, condition)
            misfit = name not in ("faiss", "memory") and condition in MISFITS.get(kind, [])
            if not refused and not misfit:
                assert found == meaning, (name, condition)


@pytest.mark.qdrant_server
@pytest.mark.parametrize("protocol", ["server", "server_grpc"])
def test_it_means_the_same_on_a_real_server(
    request: pytest.FixtureRequest, protocol: str, kind: str, tmp_path: Path
) -> None:
    engine = request.getfixturevalue(f"{protocol}_engine")
    index, other = engine.create(), faiss_engine(tmp_path).create()
    for each in (index, other):
        each.upsert(points())
    if kind != "None":
        index.create_payload_index("x", cast("PayloadKind", kind))
    location = os.environ["EDJE_QDRANT_URL"]
    running = QdrantClient(url=location, check_compatibility=False).info().version
    refusing = REFUSED["1.18.3" if running.startswith(("1.16", "1.17", "1.18")) else "1.19.0"]
    for condition in CONDITIONS:
        found = found_on(index, condition)
        refused = condition in [*refusing[None], *refusing.get(kind, [])]
        assert (found == "refused") == refused, condition
        if not refused and condition not in MISFITS.get(kind, []):
            assert found == found_on(other, condition), condition
    index.close()
    other.close()


def test_the_meaning_is_what_servers_find_wherever_they_agree(kind: str) -> None:
    """Where both versions and Edge were recorded to find the same, that is what is meant."""
    asked = ["server 1.18.3 REST", "server 1.19.0 REST", "Edge 0.9.0"]
    for condition in CONDITIONS:
        answers = [recorded(kind, condition, engine) for engine in asked]
        if condition in REFUSED["faiss"][None] or answers.count(answers[0]) < len(answers):
            continue
        matches = compile_filter(filter_from_json({"must": [CONDITIONS[condition]]}))
        payloads = zip(IDS, TABLE["payloads"].values(), strict=True)
        meaning = [IDS[point_id] for point_id, p in payloads if matches(p, point_id)]
        other = condition in [*MISFITS.get(kind, []), *REFUSED["edge"].get(kind, [])]
        assert (meaning == answers[0]) != other, condition


@pytest.mark.parametrize("protocol", ["REST", "gRPC"])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_stand_in_finds_what_the_server_found(version: str, kind: str, protocol: str) -> None:
    with GrpcStandIn(version) as server:
        client = QdrantClient(url=server.url, check_compatibility=False)
        if protocol == "gRPC":
            client = server.client()
        params = models.VectorParams(size=8, distance=models.Distance.COSINE)
        client.create_collection("images", vectors_config=params)
        client.upsert(
            "images",
            [
                models.PointStruct(id=p.id, vector=p.vector.tolist(), payload=p.payload)
                for p in points()
            ],
        )
        if kind != "None":
            client.create_payload_index("images", "x", field_schema=models.PayloadSchemaType(kind))
        for condition, given in CONDITIONS.items():
            chosen = models.Filter.model_validate({"must": [given]})
            try:
                records, _ = client.scroll("images", chosen, limit=99)
                found: Any = sorted(IDS[str(record.id)] for record in records)
            except Exception as error:
                found = f"refused: {type(error).__name__}"
            assert found == recorded(kind, condition, f"server {version} {protocol}"), condition
        client.close()
