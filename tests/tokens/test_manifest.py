from __future__ import annotations

import json

import numpy as np
import pytest

from edje_qdrant.errors import StoreError, TokensCorruptError, TokensNotFoundError
from edje_qdrant.tokens.manifest import Manifest, Segment


@pytest.fixture
def manifest(contract):
    segments = (Segment("01234567", "float16", 42, 7), Segment("89abcdef", "int8", 27))
    return Manifest("0123456789abcdef" * 2, 1 << 20, contract.with_codec("int8"), segments)


def test_round_trip(tmp_path, manifest):
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


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


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", "\x00" * 64, "[" * 100_000])
def test_damage(tmp_path, manifest, text):
    (tmp_path / "tokens.json").write_text(text)
    with pytest.raises(TokensCorruptError, match="damaged"):
        Manifest.read(tmp_path)


def test_every_changed_byte_is_noticed(tmp_path, manifest):
    manifest.write(tmp_path)
    path = tmp_path / "tokens.json"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        with pytest.raises(StoreError):
            Manifest.read(tmp_path)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(TokensCorruptError):
            Manifest.read(tmp_path)


@pytest.mark.parametrize("field", ["store_id", "segment_bytes", "segments", "contract", "checksum"])
def test_a_lost_field(tmp_path, manifest, field):
    manifest.write(tmp_path)
    path = tmp_path / "tokens.json"
    data = json.loads(path.read_text())
    del data[field]
    path.write_text(json.dumps(data))
    with pytest.raises(TokensCorruptError, match="damaged"):
        Manifest.read(tmp_path)
