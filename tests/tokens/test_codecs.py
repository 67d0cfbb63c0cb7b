from __future__ import annotations

import numpy as np
import pytest

from edje_qdrant.errors import ConfigError
from edje_qdrant.tokens.codecs import codec_for


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


@pytest.mark.parametrize(
    "tokens",
    [
        np.zeros((2, 3, 4), np.float32),
        np.zeros((2, 4, 3), np.float16),
        np.zeros((3, 4), np.float16),
        np.zeros((2, 12), np.float16),
    ],
)
def test_other_shapes_and_dtypes_are_refused(tokens):
    with pytest.raises(ConfigError, match=r"\(n, 3, 4\)"):
        codec_for("float16", 3, 4).encode(tokens)


def test_an_unknown_codec_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'zip'; known: float16"):
        codec_for("zip", 3, 4)
