from __future__ import annotations

import json

import numpy as np
import pytest

from edje_qdrant.errors import ConfigError, TokensCorruptError, TokensNotFoundError
from edje_qdrant.tokens.payload_store import PayloadTokenStore


@pytest.fixture
def store(contract):
    return PayloadTokenStore(contract)


def test_round_trip_is_exact_through_json(store, make_tokens, make_ids):
    tokens, ids = make_tokens(5), make_ids(5)
    references = json.loads(json.dumps(store.put(ids, tokens)))
    store.flush()
    assert store.in_payload
    order = [3, 0, 3, 4]
    back = store.get([ids[i] for i in order], [references[i] for i in order])
    assert back.dtype == np.float16
    assert back.tobytes() == tokens[order].tobytes()
    assert back.flags.writeable


def test_bytes_are_those_of_the_text(store, make_tokens, make_ids):
    (reference,) = store.put(make_ids(1), make_tokens(1))
    assert len(reference["tokens"]) == store.nbytes_per_image() == 56


def test_nothing_in_nothing_out(store, make_tokens):
    assert store.put([], make_tokens(0)) == []
    assert store.get([], []).shape == (0, 3, 7)


def test_a_point_without_tokens_is_named(store, make_tokens, make_ids):
    ids = make_ids(2)
    references = store.put(ids, make_tokens(2))
    with pytest.raises(TokensNotFoundError, match=ids[1]) as caught:
        store.get(ids, [references[0], {}])
    assert caught.value.image_ids == (ids[1],)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: {**r, "tokens": r["tokens"][:-4]},
        lambda r: {**r, "tokens": r["tokens"][:-1]},
        lambda r: {**r, "tokens": r["tokens"] + "AAAA"},
        lambda r: {**r, "tokens": "é" * len(r["tokens"])},
        lambda r: {**r, "tokens": "*" * len(r["tokens"])},
        lambda r: {**r, "tokens": 7},
        lambda r: {**r, "checksum": "0" * 32},
        lambda r: {**r, "checksum": 5},
        lambda r: {"tokens": r["tokens"], "codec": "float16"},
        lambda r: {**r, "codec": "int8"},
        lambda r: {**r, "codec": "pq16-00000000"},
        lambda r: {**r, "codec": "zip"},
        lambda r: {**r, "codec": None},
    ],
)
def test_damage_raises_and_names_the_picture(store, make_tokens, make_ids, spoil):
    ids = make_ids(3)
    references = store.put(ids, make_tokens(3))
    references[1] = spoil(references[1])
    with pytest.raises(TokensCorruptError, match=ids[1]) as caught:
        store.get(ids, references)
    assert caught.value.image_ids == (ids[1],)


def test_any_changed_letter_raises(store, make_tokens, make_ids):
    (reference,) = store.put(make_ids(1), make_tokens(1))
    text = reference["tokens"]
    for i in range(len(text)):
        changed = text[:i] + ("A" if text[i] != "A" else "B") + text[i + 1 :]
        with pytest.raises(TokensCorruptError):
            store.get(make_ids(1), [{**reference, "tokens": changed}])


def test_tokens_that_do_not_fit_are_refused(store, make_tokens, make_ids):
    with pytest.raises(ConfigError, match="float16"):
        store.put(make_ids(1), make_tokens(1).astype(np.float32))
    with pytest.raises(ConfigError, match="2 ids"):
        store.put(make_ids(2), make_tokens(1))
