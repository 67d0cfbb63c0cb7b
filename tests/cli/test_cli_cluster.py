"""Options about servers: how to keep a new collection, and how to ask."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import refused, run
from index_stand_in import StandIn

from edje_qdrant.errors import EdjeError
from edje_qdrant.index import QdrantOptions
from edje_qdrant.index.qdrant.connection import Connection

WriteImages = Callable[..., list[Path]]
OPTIONS = ["--shards", "6", "--replicas", "2", "--quantization", "int8"]


def test_the_collection_is_made_as_asked_for_and_a_rerun_goes_on(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path / "pictures", 3)
    command = ["ingest", str(tmp_path / "pictures"), "--model", str(tiny_folder), "--json"]
    command += [*OPTIONS, "--on-disk", "payload, vectors"]
    with StandIn() as server:
        counts = []
        for _ in range(2):
            result = run(*command, "--url", server.url)
            assert result.exit_code == 0, result.output
            report = json.loads(result.stdout.splitlines()[-1])
            counts.append((report["added"], report["skipped"]))
        asked = server.created["images"]
    assert counts == [(3, 0), (0, 3)]
    assert (asked["shard_number"], asked["replication_factor"]) == (6, 2)
    assert asked["quantization_config"]["scalar"]["type"] == "int8"
    assert (asked["on_disk_payload"], asked["vectors"]["on_disk"]) == (True, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--url", "http://localhost:1", "--on-disk", "tokens"], "--on-disk takes payload"),
        (["--url", "http://localhost:1", "--shards", "0"], "shards is 0"),
        (["--url", "http://localhost:1", "--quantization", "int4"], "give one of int8"),
        (["--index", "photos", "--shards", "2"], "is about a Qdrant server"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    tmp_path: Path, write_images: WriteImages, options: list[str], says: str
) -> None:
    write_images(tmp_path / "pictures", 1)
    command = ["ingest", str(tmp_path / "pictures"), "--model", "no such model", *options]
    result = run(*command)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (tmp_path / "photos").exists()


COMMANDS = {
    "ingest": ["pictures"],
    "search": ["a red ring"],
    "info": [],
    "verify": [],
    "repair": [],
    "compact": [],
    "transcode": ["int8"],
    "fit-codec": ["pq16", "--out", "codec.safetensors"],
    "export": ["--out", "images.edje"],
    "delete": ["--where", "n=1"],
    "update": ["n=1", "--where", "n=1"],
    "serve": [],
    "mcp": [],
    "detach": ["--collection", "theirs"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_on_a_server_knows_its_port_of_grpc(
    tmp_path: Path, write_images: WriteImages, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """With another port than 6333 it is not guessed, and what is given arrives."""
    write_images(tmp_path / "pictures", 1)
    monkeypatch.chdir(tmp_path)
    call = [command, *COMMANDS[command], "--url", "http://localhost:6533", "--grpc"]
    assert "or --grpc-port" in refused(run(*call))
    asked: list[tuple[str, QdrantOptions]] = []

    class ReachedError(EdjeError):
        """The connection was made."""

    def reached(self: Connection, location: str, options: QdrantOptions) -> None:
        asked.append((location, options))
        raise ReachedError("reached")

    monkeypatch.setattr(Connection, "__init__", reached)
    monkeypatch.setenv("EDJE_QDRANT_API_KEY", "a-key")
    result = run(*call, "--grpc-port", "6534", "--timeout", "7")
    assert "reached" in result.stderr
    options = QdrantOptions("a-key", prefer_grpc=True, grpc_port=6534, timeout=7)
    assert asked == [("http://localhost:6533", options)]


def test_options_about_grpc_that_do_not_fit(tmp_path: Path) -> None:
    assert "give --grpc too" in refused(run("info", "--url", "http://q", "--grpc-port", "6534"))
    assert "is a folder" in refused(run("info", "--index", tmp_path, "--grpc"))
    assert "is a folder" in refused(run("copy", tmp_path / "a", tmp_path / "b", "--grpc"))
    scenes = ["eval", "scenes", "--out", tmp_path / "out"]
    assert "give --url too" in refused(run(*scenes, "--grpc"))
