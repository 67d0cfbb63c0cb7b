from __future__ import annotations

import hashlib
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError, MissingExtraError, TokensCorruptError
from edje_qdrant.tokens.codebook_bytes import Codebook
from edje_qdrant.tokens.codecs import CODECS, codec_for
from edje_qdrant.tokens.product_quantizer import ProductCodec

NAMES = [name for name in CODECS if name.startswith("pq")]


def token_like(pictures: int, m: int = 16, d: int = 48, seed: int = 0) -> NDArray[np.float16]:
    """Tokens as adapters make them: a few directions explain most, norms differ, few stand out."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((d // 4, d)) * np.linspace(3, 0.3, d // 4)[:, None]
    tokens = rng.standard_normal((pictures, m, d // 4)) @ directions
    tokens += 0.3 * rng.standard_normal(tokens.shape)
    return (tokens * rng.lognormal(0, 0.3, (pictures, m, 1)) + 2).astype(np.float16)


def random_codec(m: int, d: int, token_bytes: int, seed: int = 0) -> ProductCodec:
    """A codec whose codebook nobody fitted."""
    rng = np.random.default_rng(seed)
    pieces = rng.standard_normal((token_bytes - 1, 256, -(-d // (token_bytes - 1))))
    whole = 3 * rng.standard_normal((256, d))
    return ProductCodec(m, d, token_bytes, Codebook(whole.astype("f2"), pieces.astype("f2")))


def error_of(codec: ProductCodec, tokens: NDArray[np.float16]) -> float:
    """The mean squared error, relative to the numbers' own."""
    exact = tokens.astype(np.float64)
    decoded = codec.decode(codec.encode(tokens)).astype(np.float64)
    return float(((decoded - exact) ** 2).mean() / (exact**2).mean())


@pytest.fixture(scope="module")
def fitted() -> ProductCodec:
    codec = codec_for("pq16", 16, 48).fit(token_like(60))
    assert isinstance(codec, ProductCodec)
    return codec


SHAPES = st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 19))
TOKENS = SHAPES.flatmap(
    lambda shape: arrays(np.float16, shape, elements=st.floats(-65504, 65504, width=16))
)


def require_nearest(vectors, centroids, taken):
    """Check that each of `(k, w)` vectors got a nearest of `(256, w)` centroids."""
    gaps = vectors[:, None].astype(np.float64) - centroids.astype(np.float64)
    distances = (gaps**2).sum(axis=-1)
    # Encoding works in float32, where a large vector drowns small differences.
    slack = 1e-5 * ((vectors.astype(np.float64) ** 2).sum(axis=-1) + 20 * centroids.shape[1])
    assert (distances[np.arange(len(taken)), taken] <= distances.min(axis=1) + slack).all()


@settings(deadline=None)
@given(tokens=TOKENS, token_bytes=st.integers(2, 20), seed=st.integers(0, 9))
def test_whole_tokens_and_pieces_are_the_nearest(tokens, token_bytes, seed):
    m, d = tokens.shape[1:]
    codec = random_codec(m, d, token_bytes, seed)
    codes = codec.encode(tokens)
    assert codes.shape == (len(tokens), codec.nbytes) == (len(tokens), m * token_bytes)
    assert codes.dtype == np.uint8
    back = codec.decode(codes)
    assert back.shape == tokens.shape
    assert back.dtype == np.float16
    assert back.flags.c_contiguous

    flat, rows = tokens.reshape(-1, d).astype(np.float32), codes.reshape(-1, token_bytes)
    book = codec.codebook
    require_nearest(flat, book.whole, rows[:, 0])
    rest = flat - book.whole.astype(np.float32)[rows[:, 0]]
    width = book.pieces.shape[2]
    start = 0
    for piece, part in enumerate(np.array_split(np.arange(d), token_bytes - 1)):
        numbers = np.zeros((len(rest), width))
        numbers[:, : len(part)] = rest[:, part]
        assert part.size == 0 or part[0] == start
        start += len(part)
        require_nearest(numbers, book.pieces[piece], rows[:, 1 + piece])


@settings(deadline=None)
@given(tokens=TOKENS, token_bytes=st.integers(2, 20))
def test_codes_do_not_depend_on_the_other_pictures(tokens, token_bytes):
    codec = random_codec(*tokens.shape[1:], token_bytes)
    together = codec.encode(tokens)
    for row in range(len(tokens)):
        assert np.array_equal(codec.encode(tokens[row : row + 1])[0], together[row])


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 19)),
    token_bytes=st.integers(2, 20),
    seed=st.integers(0, 2**16),
)
def test_what_was_decoded_is_kept_exactly(shape, token_bytes, seed):
    """Whole tokens far apart, pieces small whole numbers: decoding and encoding are inverse."""
    n, m, d = shape
    codec = random_codec(m, d, token_bytes)
    whole = np.zeros((256, d), np.float16)
    whole[:, 0] = 4 * np.arange(256)
    pieces = np.zeros_like(codec.codebook.pieces)
    pieces[:, 1::2, 0] = 1
    pieces[d:] = 0  # pieces of no width
    codec = replace(codec, codebook=Codebook(whole, pieces))
    codes = np.random.default_rng(seed).integers(0, 256, (n, codec.nbytes), dtype=np.uint8)
    tokens = codec.decode(codes)
    assert np.array_equal(codec.decode(codec.encode(tokens)), tokens)


def test_the_layout_of_codes_stays_as_it_is():
    """What these bytes mean may never change: collections hold them."""
    whole = np.zeros((256, 3), np.float16)
    whole[7] = [500, 0, 1000]
    pieces = np.empty((2, 256, 2), np.float16)
    pieces[0] = np.arange(256)[:, None] * [0.5, 1]
    pieces[1] = np.arange(256)[:, None] * [-1, 0]
    codec = ProductCodec(2, 3, 3, Codebook(whole, pieces))
    tokens = np.array(
        [[[2.5, 5, -7], [0, 0, -255]], [[600, 200, 999], [508.5, 17, 1000]]], np.float16
    )  # a piece of two numbers and one of one
    codes = codec.encode(tokens)
    # Of whole tokens that are all alike, the first.
    assert codes.tolist() == [[0, 5, 7, 0, 0, 255], [7, 200, 1, 7, 17, 0]]
    assert codec.decode(codes).tolist() == tokens.tolist()
    assert codec.name == "pq3"


def test_the_layout_of_parameters_stays_as_it_is():
    whole = np.arange(256 * 3, dtype=np.float16).reshape(256, 3)
    pieces = np.arange(2 * 256 * 2, dtype=np.float16).reshape(2, 256, 2)
    codec = ProductCodec(2, 3, 3, Codebook(whole, pieces), adapter_hash="a0")
    stored = whole.astype("<f2").tobytes() + pieces.astype("<f2").tobytes()
    digest = hashlib.sha256(stored).hexdigest()
    assert codec.hash == digest[:16]
    assert codec.key == f"pq3-{digest[:8]}"
    data = codec.parameters()
    header = (
        '{"__metadata__":{"format":"edje-qdrant codec 1","name":"pq3","token_dim":"3",'
        f'"hash":"{digest[:16]}","adapter_hash":"a0"}},'
        '"whole":{"dtype":"F16","shape":[256,3],"data_offsets":[0,1536]},'
        '"pieces":{"dtype":"F16","shape":[2,256,2],"data_offsets":[1536,3584]}}'
    ).encode()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    assert data[8 : 8 + length].rstrip(b" ") == header
    assert data[8 + length :] == stored


@pytest.mark.parametrize("names", [NAMES[::3], pytest.param(NAMES, marks=pytest.mark.slow)])
def test_more_bytes_a_token_lose_less(names):
    assert NAMES == ["pq16", "pq24", "pq32", "pq48"]
    tokens, held_out = token_like(150), token_like(20, seed=1)
    codecs = [codec_for(name, 16, 48).fit(tokens) for name in names]
    for judged in (tokens, held_out):
        errors = [error_of(codec, judged) for codec in codecs]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[0] / 3
        assert errors[0] < 0.2


@pytest.mark.parametrize(("name", "d"), [("pq16", 5), ("pq24", 47), ("pq32", 49), ("pq48", 8)])
def test_odd_widths(name, d):
    tokens = token_like(40, m=7, d=d)
    codec = codec_for(name, 7, d).fit(tokens)
    codes = codec.encode(tokens)
    assert codes.shape == (40, 7 * int(name[2:]))
    assert codec.decode(codes).shape == tokens.shape
    assert error_of(codec, tokens) < 0.2


def test_encoding_agrees_with_faiss():
    import faiss

    fitted = codec_for("pq16", 16, 45).fit(token_like(60, d=45))
    book = fitted.codebook
    tokens = token_like(30, d=45, seed=3)
    rows = fitted.encode(tokens).reshape(-1, 16)
    rest = tokens.reshape(-1, 45).astype(np.float32) - book.whole.astype(np.float32)[rows[:, 0]]
    quantizer = faiss.ProductQuantizer(45, 15, 8)
    faiss.copy_array_to_vector(book.pieces.astype(np.float32).ravel(), quantizer.centroids)
    # Both take the nearest, unless two are as near but for a rounding.
    assert (rows[:, 1:] == quantizer.compute_codes(rest)).mean() > 0.999


def test_fitting_is_settled_by_tokens_and_seed(monkeypatch):
    tokens = token_like(20, m=16, d=8)
    codec = codec_for("pq16", 16, 8)
    once, again, other = codec.fit(tokens), codec.fit(tokens), codec.fit(tokens, seed=1)
    assert once.hash == again.hash != other.hash
    assert once.parameters() == again.parameters()
    assert not codec.fitted
    # Of too many, a sample that the seed draws.
    monkeypatch.setattr("edje_qdrant.tokens.product_quantizer._SAMPLE", 300)
    sampled, again = codec.fit(tokens, seed=5), codec.fit(tokens, seed=5)
    assert sampled.hash == again.hash != codec.fit(tokens, seed=6).hash
    assert error_of(sampled, tokens) < 0.05


@pytest.mark.filterwarnings("error")
def test_fitting_says_nothing(capfd):
    codec_for("pq16", 16, 8).fit(token_like(16, m=16, d=8))
    assert capfd.readouterr() == ("", "")


def test_tokens_too_few_to_fit_to_are_refused():
    codec = codec_for("pq16", 10, 8)
    codec.fit(token_like(26, m=10, d=8))
    with pytest.raises(ConfigError, match="25 images have 250; give 26 images or more"):
        codec.fit(token_like(25, m=10, d=8))
    with pytest.raises(ConfigError, match=r"\(n, 10, 8\)"):
        codec.fit(token_like(26, m=10, d=9))


@pytest.mark.parametrize("value", [0.0, 3.25, -65504.0])
def test_tokens_all_alike_are_kept(value):
    tokens = np.full((32, 8, 20), value, np.float16)
    codec = codec_for("pq16", 8, 20).fit(tokens)
    assert np.array_equal(codec.decode(codec.encode(tokens)), tokens)


def test_the_largest_numbers_make_a_codebook_without_infinities():
    rng = np.random.default_rng(0)
    tokens = rng.choice(np.array([-65504, 65504, 65472], np.float16), (40, 8, 32))
    codec = codec_for("pq16", 8, 32).fit(tokens)
    assert np.isfinite(codec.codebook.whole).all()
    assert np.isfinite(codec.codebook.pieces).all()
    assert np.isfinite(codec.decode(codec.encode(tokens))).all()
    assert error_of(codec, tokens) < 3e-3


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_refused(fitted, bad):
    tokens = token_like(20)
    tokens[3, 2, 1] = bad
    for refuse in (fitted.encode, fitted.fit):
        with pytest.raises(ConfigError, match="infinite values or NaN, which pq16"):
            refuse(tokens)


def test_before_fitting_nothing_can_be_encoded_or_decoded():
    codec = codec_for("pq32", 16, 48)
    assert (codec.fitted, codec.hash, codec.key, codec.parameters()) == (False, "", "pq32", None)
    for refuse in (
        lambda: codec.encode(token_like(1)),
        lambda: codec.decode(np.zeros((1, 512), np.uint8)),
    ):
        with pytest.raises(ConfigError, match=r"no codebook yet.*edje-qdrant fit-codec"):
            refuse()


def test_parameters_bring_the_codec_back(fitted):
    data = fitted.parameters()
    again = codec_for("pq16", 16, 48, data)
    assert again.fitted
    assert (again.hash, again.key, again.parameters()) == (fitted.hash, fitted.key, data)
    assert np.array_equal(again.codebook.pieces, fitted.codebook.pieces)
    tokens = token_like(9, seed=2)
    assert np.array_equal(again.encode(tokens), fitted.encode(tokens))
    assert len(fitted.hash) == 16
    # The number of tokens is the collection's business.
    assert codec_for("pq16", 3, 48, data).hash == fitted.hash


def test_parameters_of_others_are_refused(fitted):
    data = fitted.parameters()
    with pytest.raises(ConfigError, match="of pq16 for tokens of 48 numbers, where one of pq24"):
        codec_for("pq24", 16, 48, data)
    with pytest.raises(ConfigError, match="where one of pq16 for 47 is needed"):
        codec_for("pq16", 16, 47, data)
    with pytest.raises(ConfigError, match="int8 has no parameters"):
        codec_for("int8", 16, 48, data)
    with pytest.raises(TokensCorruptError, match="the codec's parameters: damaged"):
        codec_for("pq16", 16, 48, data[:-1])
    with pytest.raises(TokensCorruptError, match="infinite values or NaN"):
        codec_for(
            "pq16",
            16,
            48,
            replace(
                fitted,
                codebook=replace(fitted.codebook, whole=fitted.codebook.whole * np.float16("nan")),
            ).parameters(),
        )


def test_only_fitting_needs_faiss(fitted, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    tokens = token_like(20)
    codec = codec_for("pq16", 16, 48, fitted.parameters())
    assert codec.decode(codec.encode(tokens)).shape == tokens.shape
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[faiss\]"):
        codec.fit(tokens)
