from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from edje_qdrant.errors import (
    ConfigError,
    ContractMismatchError,
    EdjeError,
    StoreError,
    TokensCorruptError,
)
from edje_qdrant.tokens.codebook_bytes import Codebook
from edje_qdrant.tokens.codec_file import read_codec, write_codec
from edje_qdrant.tokens.codecs import codec_for
from edje_qdrant.tokens.product_quantizer import ProductCodec

IN_ONE_FOLDER = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def codec() -> ProductCodec:
    rng = np.random.default_rng(0)
    whole, pieces = rng.standard_normal((256, 7)), rng.standard_normal((15, 256, 1))
    return ProductCodec(3, 7, 16, Codebook(whole.astype("f2"), pieces.astype("f2")))


def tables(codec: ProductCodec) -> dict[str, np.ndarray]:
    return {"whole": codec.codebook.whole, "pieces": codec.codebook.pieces}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pq16.safetensors"


def test_a_codec_comes_back_the_same(codec, path):
    write_codec(codec, path)
    again = read_codec(str(path), 3, 7)
    assert (again.name, again.hash, again.key) == ("pq16", codec.hash, codec.key)
    assert np.array_equal(again.codebook.pieces, codec.codebook.pieces)
    assert again.parameters() == path.read_bytes() == codec.parameters()
    assert codec_for("pq16", 3, 7, path.read_bytes()).hash == codec.hash
    assert read_codec(path, 64, 7).nbytes == 64 * 16


def test_any_reader_of_safetensors_understands_it(codec, path, contract):
    write_codec(codec, path, contract=contract)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {
            "format": "edje-qdrant codec 1",
            "name": "pq16",
            "token_dim": "7",
            "hash": codec.hash,
            "adapter_hash": "a0",
        }
        for name, table in tables(codec).items():
            assert np.array_equal(file.get_tensor(name), table)


def test_it_knows_whose_tokens_it_was_fitted_to(codec, path, contract):
    write_codec(codec, path, contract=contract)
    again = read_codec(path, 3, 7, adapter_hash="a0")
    assert again.adapter_hash == "a0"
    assert again.parameters() == path.read_bytes()
    assert again.hash == codec.hash
    with pytest.raises(ContractMismatchError, match="expected b1, found a0") as caught:
        read_codec(path, 3, 7, adapter_hash="b1")
    assert caught.value.expected == {"adapter_hash": "b1"}
    assert caught.value.found == {"adapter_hash": "a0"}
    # One that does not say is believed.
    write_codec(codec, path)
    assert read_codec(path, 3, 7, adapter_hash="b1").hash == codec.hash


def test_writing_replaces(codec, path):
    doubled = replace(codec.codebook, whole=codec.codebook.whole * 2)
    write_codec(replace(codec, codebook=doubled), path)
    write_codec(codec, path)
    assert read_codec(path, 3, 7).hash == codec.hash
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["float16", "int8", "int4", "pq16"])
def test_a_codec_without_parameters_is_not_written(path, name):
    advice = "fit it" if name == "pq16" else "its name is enough"
    with pytest.raises(ConfigError, match=f"{name} has no parameters to write; {advice}"):
        write_codec(codec_for(name, 3, 7), path)
    assert not path.exists()


def test_missing_and_unreadable_files(codec, path, tmp_path):
    with pytest.raises(ConfigError, match=r"no codec at .*; make one with `edje-qdrant fit-codec`"):
        read_codec(path, 3, 7)
    with pytest.raises(StoreError, match="cannot read the codec"):
        read_codec(tmp_path, 3, 7)
    with pytest.raises(StoreError, match="cannot write the codec"):
        write_codec(codec, tmp_path / "no" / "folder")


def test_tokens_of_another_width_are_refused(codec, path):
    write_codec(codec, path)
    with pytest.raises(ConfigError, match=r"pq16\.safetensors: .* of 7 numbers, .* for 8"):
        read_codec(path, 3, 8)


@IN_ONE_FOLDER
@given(cut=st.integers(0, 11800))
def test_a_file_cut_off_is_refused(codec, path, cut):
    data = codec.parameters()
    assert 11264 < len(data) < 11800
    path.write_bytes(data[: min(cut, len(data) - 1)])
    with pytest.raises(TokensCorruptError, match=r"pq16\.safetensors: damaged"):
        read_codec(path, 3, 7)


@IN_ONE_FOLDER
@given(data=st.data())
def test_no_flipped_bit_gives_another_codebook(codec, path, data):
    stored = bytearray(codec.parameters())
    # Header and codebook alike, though the codebook is much the longer.
    place = data.draw(st.integers(0, 400) | st.integers(0, len(stored) - 1))
    stored[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(stored)
    try:
        read = read_codec(path, 3, 7)
    except (TokensCorruptError, ConfigError):
        return
    # A flipped bit of the header's padding, at most.
    assert place < len(stored) - 11264
    assert np.array_equal(read.codebook.pieces, codec.codebook.pieces)
    assert np.array_equal(read.codebook.whole, codec.codebook.whole)
    assert (read.name, read.hash) == (codec.name, codec.hash)


@IN_ONE_FOLDER
@given(junk=st.binary(max_size=300))
def test_junk_is_refused(path, junk):
    path.write_bytes(junk)
    with pytest.raises(TokensCorruptError):
        read_codec(path, 3, 7)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "damaged, or not a codec"),
        ({"format": "pt"}, "format is 'pt'"),
        ({"format": "edje-qdrant codec 2"}, "this version"),
        ({"format": "edje-qdrant codec 1"}, "damaged"),
    ],
)
def test_other_safetensors_files_are_refused(path, codec, metadata, words):
    save_file(tables(codec), path, metadata=metadata)
    with pytest.raises(TokensCorruptError, match=words):
        read_codec(path, 3, 7)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "pq24"},
        {"name": "int8"},
        {"name": "pq16\n"},
        {"token_dim": "17"},
        {"token_dim": "0"},
        {"token_dim": "many"},
        {"hash": "0" * 16},
    ],
)
def test_metadata_that_do_not_fit_the_codebook_are_refused(path, codec, change):
    metadata = {
        "format": "edje-qdrant codec 1",
        "name": "pq16",
        "token_dim": "7",
        "hash": codec.hash,
        **change,
    }
    save_file(tables(codec), path, metadata=metadata)
    with pytest.raises(TokensCorruptError):
        read_codec(path, 3, 7)
    save_file(tables(codec), path, metadata={**metadata, "name": "pq16",
              "token_dim": "7", "hash": codec.hash})  # fmt: skip
    assert read_codec(path, 3, 7).hash == codec.hash


def test_a_codec_of_a_later_version_is_named(path):
    codebook = Codebook(np.zeros((256, 7), np.float16), np.zeros((1, 256, 7), np.float16))
    codec = ProductCodec(3, 7, 2, codebook)
    write_codec(codec, path)
    with pytest.raises(EdjeError, match="unknown codec 'pq2'; known: float16"):
        read_codec(path, 3, 7)
