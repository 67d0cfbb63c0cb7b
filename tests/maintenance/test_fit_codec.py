from __future__ import annotations

import sys

import numpy as np
import pytest
from collection_places import encoding_of, fill, ids_of, make_place
from stored import damage, make

from edje_qdrant.errors import ConfigError, MissingExtraError, TokensCorruptError
from edje_qdrant.maintenance import fit_codec, transcode
from edje_qdrant.tokens.codecs import codec_for


@pytest.fixture
def collection(tmp_path):
    with make(make_place("edge-file", tmp_path), 90) as opened:
        yield opened


def test_the_same_seed_gives_the_same_codebook(collection, tmp_path):
    first = fit_codec(collection, "pq16", sample=70)
    assert first.key == fit_codec(collection, "pq16", sample=70).key
    assert first.key != fit_codec(collection, "pq16", sample=70, seed=1).key
    assert first.key != fit_codec(collection, "pq16", sample=64).key
    assert first.fitted
    # The order in which images came, and where they lie, makes no difference.
    ids = ids_of(90)
    with make(make_place("memory-payload", tmp_path)) as other:
        for start in (60, 0, 30):
            fill(other, ids[start : start + 30])
        assert fit_codec(other, "pq16", sample=70).key == first.key


def test_the_sample_is_drawn_from_all(collection):
    exact = codec_for("pq16", 4, 6)
    order = np.random.default_rng(0).choice(np.array(sorted(ids_of(90))), 70, replace=False)
    expected = exact.fit(encoding_of([str(image_id) for image_id in order]).tokens)
    assert fit_codec(collection, "pq16", sample=70).key == expected.key
    whole = fit_codec(collection, "pq16")  # more than there are
    assert whole.fitted


def test_what_it_fits_is_of_use(collection):
    codec = fit_codec(collection, "pq16")
    exact = encoding_of(ids_of(90)).tokens
    transcode(collection, codec)
    found = collection.encodings(ids_of(90)).tokens
    worst = codec_for("int4", 4, 6)
    error = np.abs(found - exact).mean()
    assert 0 < error < np.abs(exact - np.roll(exact, 1, axis=0)).mean() / 4
    assert worst.nbytes < codec.nbytes


def test_a_codec_without_a_codebook_is_returned_as_it_is(collection):
    assert fit_codec(collection, "int4") == codec_for("int4", 4, 6)


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("pq16", {"sample": 63}, "64 images or more"),
        ("pq16", {"sample": 0}, "sample is 0"),
        ("pq16", {"sample": -1}, "sample is -1"),
        ("pq17", {}, "known: float16"),
    ],
)
def test_what_cannot_be_fitted_is_refused(collection, name, more, words):
    with pytest.raises(ConfigError, match=words):
        fit_codec(collection, name, **more)


def test_too_few_pictures(tmp_path):
    with make(make_place("edge-file", tmp_path)) as collection:
        with pytest.raises(ConfigError, match="is empty; ingest"):
            fit_codec(collection, "pq16")
        fill(collection, ids_of(63))
        with pytest.raises(ConfigError, match="64 images or more"):
            fit_codec(collection, "pq16")
        fill(collection, ids_of(1, start=80))
        assert fit_codec(collection, "pq16").fitted


def test_the_extra_that_is_missing_is_named(collection, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[faiss\]"):
        fit_codec(collection, "pq16")
    assert fit_codec(collection, "int8").fitted


def test_damaged_tokens_are_not_fitted_to(collection):
    damage(collection, ids_of(90)[4])
    with pytest.raises(TokensCorruptError) as caught:
        fit_codec(collection, "pq16")
    assert caught.value.image_ids == (ids_of(90)[4],)
