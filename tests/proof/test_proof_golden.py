"""What version 1 of the formats wrote is read bit for bit, and is what is written today."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.metadata import CollectionRecord
from edje_qdrant.maintenance import import_collection
from edje_qdrant.tokens.codec_file import read_codec
from edje_qdrant.tokens.codecs import codec_for
from edje_qdrant.tokens.file_store import FileTokenStore

GOLDEN = Path(__file__).parents[1] / "golden"
VERSION_1 = GOLDEN / "format-1"

sys.path.append(str(GOLDEN))
import write as golden  # noqa: E402


@pytest.fixture(scope="module")
def expected() -> dict[str, NDArray[np.float16]]:
    return {path.stem: np.load(path) for path in (VERSION_1 / "expected").glob("*.npy")}


@pytest.fixture(scope="module")
def references() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = json.loads((VERSION_1 / "references.json").read_text())
    return found


@pytest.mark.parametrize("name", [*golden.CODECS, "segments"])
def test_side_files_are_read(name: str, expected: Any, references: Any) -> None:
    with closing(FileTokenStore.open(VERSION_1 / name)) as store:
        ids = golden.ids_of(len(references[name]))
        assert store.get(ids, references[name]).tobytes() == expected[name].tobytes()
        assert store.unlisted() == []
        if name == "segments":
            assert [s.num_records for s in store.segments()] == [2, 2, 1, 3, 2, 1, 1, 1, 1, 1]
            assert len({s.codec for s in store.segments()}) == 3


@pytest.mark.parametrize("name", golden.CODECS)
def test_tokens_in_a_payload_are_read(name: str, expected: Any, references: Any) -> None:
    codec = codec_for(name, *golden.SHAPE)
    if not codec.fitted:
        codec = read_codec(VERSION_1 / golden.CODEC_FILE, *golden.SHAPE)
    found = golden.payload_store(codec).get(
        golden.ids_of(golden.PICTURES), references[f"{name} in the payload"]
    )
    assert found.tobytes() == expected[name].tobytes()


def test_float16_keeps_every_bit(expected: Any) -> None:
    assert expected["float16"].tobytes() == golden.tokens_of(golden.PICTURES).tobytes()
    assert expected["tokens"].tobytes() == expected["float16"].tobytes()


def test_an_archive_is_read(tmp_path: Path, expected: Any) -> None:
    ids = golden.ids_of(golden.PICTURES)
    for number, options in enumerate(({}, {"tokens": "payload"})):
        archive = VERSION_1 / "archive.edje"
        report = import_collection(archive, tmp_path, f"images-{number}", **options)
        assert report.copied == golden.PICTURES
        with ImageCollection.open(tmp_path, f"images-{number}") as collection:
            found = collection.encodings(ids)
            payload = collection.index.retrieve(ids[:1], tokens=False)[ids[0]]
        assert found.tokens.tobytes() == expected["pq16"].tobytes()
        assert found.embeddings.tolist() == np.eye(4)[[0, 1, 2, 3, 0]].tolist()
        assert payload["path"] == f"/{ids[0]}.png"
        assert payload["wörter"] == ["a", None]


@pytest.mark.parametrize("name", ["file", "payload"])
def test_what_an_index_keeps_is_read(name: str) -> None:
    metadata = json.loads((VERSION_1 / f"record-{name}.json").read_text())
    record = CollectionRecord.read(metadata, "golden")
    assert record.as_metadata() == metadata
    assert record.tokens == name
    assert record.contract.adapter_hash == "a0"


def test_today_writes_the_same_bytes(tmp_path: Path) -> None:
    golden.write(tmp_path / "today", read_codec(VERSION_1 / golden.CODEC_FILE, *golden.SHAPE))
    ours, theirs = (
        {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (tmp_path / "today", VERSION_1)
    )
    assert sorted(ours) == sorted(theirs)
    changed = [name for name in ours if ours[name] != theirs[name]]
    assert not changed, f"the format has changed ({changed}): see tests/golden/write.py"


def test_golden_files_are_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["write.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="never overwritten"):
        golden.main()
    assert [*tmp_path.iterdir()] == []
