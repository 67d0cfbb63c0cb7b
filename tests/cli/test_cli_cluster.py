"""Options of `ingest` about how a server is to keep the collection that it creates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import run
from index_stand_in import StandIn

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
