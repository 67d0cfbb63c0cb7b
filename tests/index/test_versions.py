"""A server is asked only for what its version knows, over REST and over gRPC."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import pytest
from grpc_stand_in import GrpcStandIn
from index_engines import FAST, Engine, image_id, make_points, qdrant_engine, unit_vectors
from index_stand_in import StandIn
from qdrant_client import QdrantClient, models

from edje_qdrant.attach.points import AttachablePoints
from edje_qdrant.errors import ConfigError, EngineUnavailableError, StoreError
from edje_qdrant.index import PayloadKind, QdrantSettings, VectorIndex, create_on_server
from edje_qdrant.index.filters import validate
from edje_qdrant.index.filters.from_json import filter_from_json
from edje_qdrant.index.qdrant import versions
from edje_qdrant.index.qdrant.settings import Quantization
from edje_qdrant.index.qdrant.versions import NEEDS, OLDEST, ServerVersion

NEWER: dict[str, tuple[str, Any]] = {
    "SliceCondition": ("1.19", {"slice": {"total": 4, "index": 0}}),
    "MatchPrefix": ("1.19", {"key": "path", "match": {"prefix": "1"}}),
    "MatchSubstring": ("1.20", {"key": "path", "match": {"substring": "1"}}),
}
PATHS: dict[str, Callable[[VectorIndex, Any], Any]] = {
    "count": lambda index, chosen: index.count(chosen),
    "scroll": lambda index, chosen: list(index.scroll(filter=chosen)),
    "search": lambda index, chosen: index.nearest(unit_vectors(1), 3, filter=chosen),
    "search_async": lambda index, chosen: asyncio.run(
        index.nearest_async(unit_vectors(1), 3, filter=chosen)
    ),
    "recommend": lambda index, chosen: index.recommend([image_id(0)], [], 3, filter=chosen),
    "best_score": lambda index, chosen: index.recommend(
        [image_id(0)], [], 3, filter=chosen, strategy="best_score"
    ),
    "delete_matching": lambda index, chosen: index.delete_matching(chosen),
}


@dataclass
class Reached:
    """A server with 20 images, reached by one protocol."""

    stand_in: StandIn
    seen: list[str]
    engine: Engine
    location: str | QdrantClient

    def asked(self) -> set[str]:
        """Return what was asked about points."""
        return {each for each in self.seen if "oints" in each}


@pytest.fixture(params=["REST", "gRPC"])
def reached(request: pytest.FixtureRequest, grpc_stand_in: GrpcStandIn) -> Iterator[Reached]:
    stand_in = grpc_stand_in.rest
    stand_in.version = "1.18.3"
    client = grpc_stand_in.client(timeout=120)
    over_grpc = request.param == "gRPC"
    location = client if over_grpc else stand_in.url
    engine = qdrant_engine(location)
    engine.create().upsert(make_points(unit_vectors(20)))
    seen = grpc_stand_in.seen if over_grpc else stand_in.seen
    seen.clear()
    yield Reached(stand_in, seen, engine, location)
    engine.close()
    client.close()


#: Quantization -> the first version of a server that has it.
TURBO = {"turbo1": "1.18", "turbo1.5": "1.18", "turbo2": "1.18", "turbo4": "1.18", "turbo8": "1.20"}


@pytest.mark.parametrize("kind", TURBO)
def test_a_server_without_this_quantization_is_named(reached: Reached, kind: Any) -> None:
    reached.stand_in.version = "1.17.1"
    says = f"{kind}, which Qdrant 1.17.1.*{TURBO[kind]}"
    with pytest.raises(ConfigError, match=says):
        create_on_server(reached.location, "turbo", 8, {}, FAST, QdrantSettings(quantization=kind))
    assert "turbo" not in reached.stand_in.created


@pytest.mark.parametrize(
    "placed",
    [
        {"vectors_memory": "cold"},
        {"payload_memory": "cached"},
        {"graph_memory": "pinned"},
        {"quantization": "int8", "quantized_memory": "pinned"},
    ],
)
def test_a_server_without_placements_of_memory_is_named(
    reached: Reached, placed: dict[str, Any]
) -> None:
    name, value = [*placed.items()][-1]
    says = f"{name}='{value}' is a memory placement, which Qdrant 1.18.3 does not.*Qdrant 1.19 or"
    settings = QdrantSettings(**placed)
    with pytest.raises(ConfigError, match=says):
        create_on_server(reached.location, "placed", 8, {}, FAST, settings)
    assert "placed" not in reached.stand_in.created
    reached.stand_in.version = "1.19.0"
    create_on_server(reached.location, "placed", 8, {}, FAST, settings).close()
    assert value in str(reached.stand_in.created["placed"])


@pytest.mark.parametrize("kind", NEWER)
def test_what_it_is_too_old_for_is_refused_before_anything_is_sent(
    reached: Reached, kind: str
) -> None:
    needed, condition = NEWER[kind]
    index = reached.engine.open()
    given: list[Any] = [{"must": [condition]}, {"should": [{"must_not": [condition]}]}]
    if kind != "SliceCondition":
        given.append({"must": [{"nested": {"key": "a", "filter": {"must": [condition]}}}]})
    for chosen in map(filter_from_json, given):
        for use in PATHS.values():
            with pytest.raises(
                ConfigError, match=f"is a {kind}, which Qdrant 1.18.3 does not.*Qdrant {needed} or"
            ):
                use(index, chosen)
    assert not reached.asked()
    assert index.count() == 20


def test_where_the_version_may_not_be_read_it_is_taken_for_the_oldest(reached: Reached) -> None:
    reached.stand_in.version = "1.19.0"
    reached.stand_in.hides_version = True
    index = reached.engine.open()
    chosen = filter_from_json({"must": [NEWER["SliceCondition"][1]]})
    with pytest.raises(
        ConfigError, match=r"unknown version, taken for 1\.16, does not know.*1\.19"
    ):
        index.delete_matching(chosen)
    assert index.count() == 20
    words = filter_from_json({"must": [{"key": "path", "match": {"any": ["1.png"]}}]})
    assert index.count(words) == 1


def test_an_upgrade_is_noticed_before_anything_is_refused(reached: Reached) -> None:
    index = reached.engine.open()
    chosen = filter_from_json({"must": [NEWER["SliceCondition"][1]]})
    reached.stand_in.version = "1.19.0"
    assert 0 < index.count(chosen) < 20
    reached.seen.clear()
    index.count(chosen)  # remembered
    assert len(reached.seen) == 1
    index.delete_matching(chosen)
    assert 0 < index.count() < 20


def test_a_downgrade_is_noticed_before_anything_is_deleted(reached: Reached) -> None:
    reached.stand_in.version = "1.19.0"
    index = reached.engine.open()
    reached.stand_in.version = "1.18.3"
    with pytest.raises(ConfigError, match=r"which Qdrant 1\.18\.3 does not know"):
        index.delete_matching(filter_from_json({"must": [NEWER["SliceCondition"][1]]}))
    assert index.count() == 20


def test_a_version_is_read_again_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["1.19.0", "1.19.1", "1.18.3", "1.18.3"])
    version = ServerVersion(lambda: next(answers), "http://there")
    version.require("SliceCondition", "filter")
    monkeypatch.setattr(versions, "_KEPT", -1.0)
    version._until = 0
    version.require("SliceCondition", "filter")
    with pytest.raises(ConfigError, match=r"filter is a SliceCondition.*1\.18\.3.*1\.19"):
        version.require("SliceCondition", "filter")
    version.require("MatchTextAny", "filter")  # known to the oldest: nothing is asked
    assert [*answers] == ["1.18.3"]


@pytest.mark.parametrize("old", ["1.15.5", "0.11.0"])
def test_an_older_server_is_refused_at_once(reached: Reached, old: str) -> None:
    reached.stand_in.version = old
    for start in (reached.engine.open, lambda: reached.engine.create("more")):
        with pytest.raises(StoreError, match=rf"is Qdrant {old}, which keeps no.*Qdrant 1\.16 or"):
            start()
    assert reached.seen in (["GET /"] * 2, ["Qdrant/HealthCheck"] * 2)
    with pytest.raises(StoreError, match=f"is Qdrant {old}"):
        AttachablePoints(reached.stand_in.url, "images")


def test_a_server_that_is_away_has_no_version(stand_in: StandIn) -> None:
    stand_in.failures += [(503, {})] * 4
    with pytest.raises(EngineUnavailableError):
        qdrant_engine(stand_in.url).open()


def test_whatever_is_sent_is_looked_up_in_the_table(
    reached: Reached, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        ServerVersion, "require", lambda self, feature, where, **more: asked.append(feature)
    )
    settings = QdrantSettings(quantization="binary")
    index = create_on_server(reached.location, "more", 8, {}, FAST, settings)
    index.create_payload_index("path", "keyword")
    index.upsert(make_points(unit_vectors(3)))
    index.nearest(unit_vectors(1), 1, filter={"path": "1.png"})
    index.recommend([image_id(0)], [], 1, strategy="best_score")
    index.close()
    assert {*asked} == {
        "binary", "keyword", "QueryRequest", "RecommendQuery", "AcornSearchParams",
        "QuantizationSearchParams", "FieldCondition", "match", "MatchValue",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["1.16.0", "1.19.0-dev", "2.0", "10.3.1", "unknown", "", None])
def test_versions_of_any_form(text: str | None) -> None:
    version = ServerVersion(lambda: text, "http://there")
    version.require("MatchPhrase", "filter")
    if text in ("1.16.0", "unknown", "", None):
        with pytest.raises(ConfigError):
            version.require("SliceCondition", "filter")
    else:
        version.require("SliceCondition", "filter")


def test_the_table_has_all_that_can_be_asked_for() -> None:
    asked = {*validate._CHECKS, *validate._MATCHES, *validate.KINDS, "Range", "DatetimeRange"}
    made = {*get_args(PayloadKind), *get_args(Quantization)}
    sent = {"QueryRequest", "RecommendQuery", "RrfQuery", "QuantizationSearchParams"}
    sent |= {"AcornSearchParams", "new vector", "deletion of a vector", "memory placement"}
    assert {*NEEDS} == asked | made | sent | {"MinShould", "metadata", "UpdateMode"}
    newer = {kind: f"{major}.{minor}" for kind, (major, minor) in NEEDS.items()
             if (major, minor) > OLDEST}  # fmt: skip
    # Not refused: an older server is sent a plain upsert.
    assert newer.pop("UpdateMode") == "1.17"
    assert newer.pop("memory placement") == "1.19"
    # Of words beside the vectors.
    assert (newer.pop("RrfQuery"), newer.pop("new vector")) == ("1.17", "1.18")
    assert newer.pop("deletion of a vector") == "1.18"
    turbo = {kind: newer.pop(kind) for kind in [*newer] if kind.startswith("turbo")}
    assert turbo == TURBO
    assert newer == {kind: needed for kind, (needed, _) in NEWER.items()}


@pytest.mark.qdrant_server
@pytest.mark.parametrize("protocol", ["server", "server_grpc"])
@pytest.mark.parametrize("kind", NEWER)
def test_a_real_server_finds_it_or_it_is_refused(
    request: pytest.FixtureRequest, protocol: str, kind: str
) -> None:
    engine: Engine = request.getfixturevalue(f"{protocol}_engine")
    client = QdrantClient(url=os.environ["EDJE_QDRANT_URL"], check_compatibility=False)
    running = client.info().version
    client.close()
    needed, condition = NEWER[kind]
    chosen = filter_from_json({"must": [condition]})
    index = engine.create()
    index.upsert(make_points(unit_vectors(20)))
    if tuple(map(int, running.split(".")[:2])) >= NEEDS[kind]:
        found = index.count(chosen)
        assert 0 < found < 20
        index.delete_matching(chosen)
        assert index.count() == 20 - found
    else:
        for use in PATHS.values():
            with pytest.raises(ConfigError, match=f"{kind}, which Qdrant {running}.*{needed}"):
                use(index, chosen)
        assert index.count() == 20
    index.close()


def test_the_client_knows_all_that_the_table_names() -> None:
    for feature in NEEDS:
        if feature[0].isupper():
            assert hasattr(models, feature)
    for kind in get_args(Quantization):
        assert kind in NEEDS
