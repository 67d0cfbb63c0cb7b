from __future__ import annotations

import json

import pytest

from edje_qdrant.errors import StoreError, TokensCorruptError, TokensNotFoundError
from edje_qdrant.tokens.manifest import HEADER_BYTES, Manifest


@pytest.fixture
def manifest(contract):
    return Manifest("0123456789abcdef" * 2, 42, 7, contract)


def test_round_trip(tmp_path, manifest):
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert manifest.side_file == "tokens-01234567.bin"
    assert len(manifest.header) == HEADER_BYTES


def test_missing(tmp_path):
    with pytest.raises(TokensNotFoundError, match="no token store"):
        Manifest.read(tmp_path / "nowhere")


def test_another_version_is_named(tmp_path, manifest):
    manifest.write(tmp_path)
    path = tmp_path / "tokens.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "format": 2}))
    with pytest.raises(StoreError, match=r"format 2 .* reads format 1"):
        Manifest.read(tmp_path)
    path.write_text(json.dumps({**data, "magic": "something else"}))
    with pytest.raises(StoreError, match="something else"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", "\x00" * 64])
def test_damage(tmp_path, manifest, text):
    (tmp_path / "tokens.json").write_text(text)
    with pytest.raises(TokensCorruptError, match="damaged"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("field", ["store_id", "record_bytes", "num_records", "contract"])
def test_a_lost_field(tmp_path, manifest, field):
    manifest.write(tmp_path)
    path = tmp_path / "tokens.json"
    data = json.loads(path.read_text())
    del data[field]
    path.write_text(json.dumps(data))
    with pytest.raises(TokensCorruptError, match="damaged"):
        Manifest.read(tmp_path)
