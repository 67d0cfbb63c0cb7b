from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edje_qdrant.errors import ConfigError
from edje_qdrant.rerank.token_decoder import TokenDecoder
from edje_qdrant.tokens.codebook_bytes import Codebook
from edje_qdrant.tokens.codecs import CODECS, Codec, codec_for
from edje_qdrant.tokens.product_quantizer import ProductCodec

SHAPES = st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 19))
TOKENS = SHAPES.flatmap(
    lambda shape: arrays(np.float16, shape, elements=st.floats(-65504, 65504, width=16))
)


def ready(name: str, m: int, d: int) -> Codec:
    """The codec; with a codebook that nobody fitted, where it needs one."""
    codec = codec_for(name, m, d)
    if not isinstance(codec, ProductCodec):
        return codec
    rng = np.random.default_rng(d)
    count = codec.token_bytes - 1
    whole = rng.standard_normal((256, d)) * rng.lognormal(0, 4, (256, 1))
    pieces = rng.standard_normal((count, 256, -(-d // count)))
    book = Codebook(np.clip(whole, -65504, 65504).astype("f2"), pieces.astype("f2"))
    return ProductCodec(m, d, codec.token_bytes, book)


def require_same_bits(decoded: torch.Tensor, codec: Codec, codes: np.ndarray) -> None:
    expected = codec.decode(codes)
    assert decoded.dtype == torch.float16
    assert decoded.shape == expected.shape
    assert decoded.is_contiguous()
    found = decoded.cpu().numpy()
    # Two values that are not numbers may differ in their bits.
    numbers = ~np.isnan(expected)
    assert np.array_equal(numbers, ~np.isnan(found))
    assert np.array_equal(expected.view(np.uint16)[numbers], found.view(np.uint16)[numbers])


@pytest.mark.parametrize("name", [*CODECS])
@settings(deadline=None)
@given(tokens=TOKENS)
def test_encoded_tokens_decode_to_the_same_bits(name, tokens):
    codec = ready(name, *tokens.shape[1:])
    codes = codec.encode(tokens)
    require_same_bits(TokenDecoder(codec, "cpu")(codes), codec, codes)


@pytest.mark.parametrize("name", [*CODECS])
@settings(deadline=None)
@given(shape=SHAPES, data=st.data())
def test_any_bytes_decode_to_the_same_bits(name, shape, data):
    codec = ready(name, *shape[1:])
    codes = data.draw(arrays(np.uint8, (shape[0], codec.nbytes)))
    with np.errstate(invalid="ignore"):
        require_same_bits(TokenDecoder(codec, "cpu")(codes), codec, codes)


@pytest.mark.parametrize("name", [*CODECS])
def test_codes_may_be_read_only_or_a_part_of_others(name):
    codec = ready(name, 4, 11)
    rng = np.random.default_rng(0)
    codes = codec.encode(rng.standard_normal((6, 4, 11)).astype(np.float16))
    decode = TokenDecoder(codec, torch.device("cpu"))
    every_other = np.repeat(codes, 2, axis=0)[::2]
    assert not every_other.flags.c_contiguous
    require_same_bits(decode(every_other), codec, codes)
    padded = np.pad(codes, ((0, 0), (3, 4)))[:, 3:-4]
    for n in (6, 1):  # a single row's stride is odd and says nothing
        require_same_bits(decode(padded[:n]), codec, codes[:n])
    before = codes.copy()
    codes.setflags(write=False)
    decode(codes).zero_()
    assert np.array_equal(codes, before)


@pytest.mark.parametrize("name", [*CODECS])
def test_other_codes_are_refused(name):
    codec = ready(name, 4, 11)
    decode = TokenDecoder(codec, "cpu")
    for shape, dtype in (
        ((2, codec.nbytes + 1), np.uint8),
        ((codec.nbytes,), np.uint8),
        ((2, codec.nbytes), np.int8),
    ):
        with pytest.raises(ConfigError, match=rf"uint8 of shape \(n, {codec.nbytes}\)"):
            decode(np.zeros(shape, dtype))


def test_codecs_that_cannot_decode_are_refused():
    with pytest.raises(ConfigError, match="pq32 has no codebook yet"):
        TokenDecoder(codec_for("pq32", 4, 11), "cpu")

    class Own:
        name, nbytes, num_tokens, token_dim = "own", 8, 1, 4

    with pytest.raises(ConfigError, match="own"):
        TokenDecoder(Own(), "cpu")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*CODECS])
@pytest.mark.parametrize("d", [384, 11])
def test_a_gpu_decodes_to_the_same_bits(name, d):
    codec = ready(name, 64, d)
    rng = np.random.default_rng(0)
    decode = TokenDecoder(codec, "cuda")
    for n in (0, 1, 100):
        tokens = rng.standard_normal((n, 64, d)) * rng.lognormal(0, 3, (n, 64, 1))
        codes = codec.encode(np.clip(tokens, -65504, 65504).astype(np.float16))
        decoded = decode(codes)
        assert decoded.device.type == "cuda"
        require_same_bits(decoded, codec, codes)
        codes = rng.integers(0, 256, (n, codec.nbytes), dtype=np.uint8)
        with np.errstate(invalid="ignore", over="ignore"):
            require_same_bits(decode(codes), codec, codes)
