from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edje_qdrant.errors import ConfigError
from edje_qdrant.tokens.codecs import CODECS, codec_for


def test_float16_is_exact_for_every_bit_pattern():
    codec = codec_for("float16", 64, 512)
    tokens = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(2, 64, 512)
    codes = codec.encode(tokens)
    assert codes.shape == (2, codec.nbytes) == (2, 64 * 512 * 2)
    assert codes.dtype == np.uint8
    back = codec.decode(codes)
    assert back.shape == tokens.shape
    assert back.tobytes() == tokens.tobytes()


def test_codes_are_little_endian():
    assert codec_for("float16", 1, 1).encode(np.ones((1, 1, 1), np.float16)).tolist() == [[0, 60]]


def test_encode_takes_tokens_that_are_not_contiguous():
    tokens = np.arange(24, dtype=np.float16).reshape(2, 4, 3).transpose(0, 2, 1)
    codec = codec_for("float16", 3, 4)
    assert np.array_equal(codec.decode(codec.encode(tokens)), tokens)


def test_no_pictures():
    codec = codec_for("float16", 3, 4)
    assert codec.decode(codec.encode(np.empty((0, 3, 4), np.float16))).shape == (0, 3, 4)


SHAPES = st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 9))
TOKENS = SHAPES.flatmap(
    lambda shape: arrays(np.float16, shape, elements=st.floats(-65504, 65504, width=16))
)


@settings(deadline=None)
@given(tokens=TOKENS, bits=st.sampled_from([4, 8]))
def test_a_number_is_off_by_half_a_step_of_its_token_at_most(tokens, bits):
    codec = codec_for(f"int{bits}", *tokens.shape[1:])
    codes = codec.encode(tokens)
    assert codes.shape == (len(tokens), codec.nbytes)
    assert codes.dtype == np.uint8
    back = codec.decode(codes).astype(np.float64)
    assert back.shape == tokens.shape
    largest = np.abs(tokens.astype(np.float64)).max(axis=2, keepdims=True, initial=0.0)
    step = largest / (2 ** (bits - 1) - 1)
    # The scale itself is rounded to float16, and so is the result; below its smallest normal
    # numbers float16 has fixed steps.
    slack = largest * 2.0**-10 + 2.0**-14
    assert (np.abs(back - tokens.astype(np.float64)) <= step / 2 + slack).all()


@settings(deadline=None)
@given(tokens=TOKENS, bits=st.sampled_from([4, 8]))
def test_encoding_a_decoded_picture_again_changes_no_integer_by_more_than_one(tokens, bits):
    codec = codec_for(f"int{bits}", *tokens.shape[1:])
    once = codec.decode(codec.encode(tokens))
    again = codec.decode(codec.encode(once)).astype(np.float64)
    largest = np.abs(once.astype(np.float64)).max(axis=2, keepdims=True, initial=0.0)
    limit = largest / (2 ** (bits - 1) - 1) * 1.01 + 2.0**-14
    assert (np.abs(again - once.astype(np.float64)) <= limit).all()


def test_the_layout_of_scaled_codes_stays_as_it_is():
    """What these bytes mean may never change: collections hold them."""
    tokens = np.array([[[7.0, -7.0, 3.0], [0.0, 0.0, 0.0]]], np.float16)
    scale = [0x00, 0x3C]  # 1.0
    assert codec_for("int4", 2, 3).encode(tokens).tolist() == [
        [*scale, 0, 0, 0x97, 0x03, 0, 0],
    ]  # fmt: skip
    tokens = tokens * np.float16(127 / 7)
    codes = codec_for("int8", 2, 3).encode(tokens)
    assert codes[0, :4].tolist() == [*scale, 0, 0]
    assert codes[0, 4:].view(np.int8).tolist() == [127, -127, 54, 0, 0, 0]


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_what_is_not_finite_is_refused(name):
    tokens = np.array([[[1.0, np.inf]], [[np.nan, 0.0]]], np.float16)
    for row in (0, 1):
        with pytest.raises(ConfigError, match="infinite values or NaN"):
            codec_for(name, 1, 2).encode(tokens[row : row + 1])


def test_bytes_of_the_published_shape():
    sizes = {name: codec_for(name, 64, 384).nbytes for name in CODECS}
    assert sizes == {
        "float16": 49_152, "int8": 24_704, "int4": 12_416,
        "pq16": 1_024, "pq24": 1_536, "pq32": 2_048, "pq48": 3_072,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["float16", "int8", "int4"])
def test_codecs_without_parameters_are_ready(name):
    codec = codec_for(name, 3, 4)
    assert (codec.name, codec.key, codec.hash, codec.fitted) == (name, name, "", True)
    assert codec.parameters() is None
    assert codec.fit(np.zeros((0, 3, 4), np.float16), seed=3) is codec


@settings(deadline=None)
@given(tokens=TOKENS, name=st.sampled_from(["float16", "int8", "int4"]))
def test_the_same_tokens_give_the_same_codes_in_any_company(tokens, name):
    codec = codec_for(name, *tokens.shape[1:])
    codes = codec.encode(tokens)
    assert np.array_equal(codec.encode(tokens.copy(order="F")), codes)
    for row in range(len(tokens)):
        assert np.array_equal(codec.encode(tokens[row : row + 1])[0], codes[row])


@pytest.mark.parametrize("name", [*CODECS])
@pytest.mark.parametrize(
    "tokens",
    [
        np.zeros((2, 3, 4), np.float32),
        np.zeros((2, 4, 3), np.float16),
        np.zeros((3, 4), np.float16),
        np.zeros((2, 12), np.float16),
    ],
)
def test_other_shapes_and_dtypes_are_refused(tokens, name):
    with pytest.raises(ConfigError, match=r"\(n, 3, 4\)"):
        codec_for(name, 3, 4).encode(tokens)


def test_an_unknown_codec_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'zip'; known: float16, int4, int8, pq16, pq24"):
        codec_for("zip", 3, 4)
