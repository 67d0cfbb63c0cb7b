from __future__ import annotations

import base64
import uuid
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edje_qdrant.errors import ConfigError
from edje_qdrant.search.cursor import Cursor, Place, decode_cursor, encode_cursor

floats = st.floats(allow_nan=False, allow_infinity=False)
logits = st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False)
places = st.builds(
    Place,
    image_id=st.uuids().map(str),
    score=logits,
    probability=st.none() | floats,
    fusion_score=st.none() | floats,
    retrieval_score=floats,
    retrieval_rank=st.integers(1, 10**6),
)
cursors = st.builds(
    Cursor,
    source=st.text(),
    query=st.text(),
    rank=st.integers(1, 10**6),
    places=st.lists(places, max_size=20),
    group_by=st.none() | st.text(),
    degraded=st.booleans(),
    reason=st.none() | st.text(),
    candidates=st.integers(0, 10**6),
    scored=st.integers(0, 10**6),
)


@given(cursors)
def test_what_was_written_is_read(cursor: Cursor) -> None:
    text = encode_cursor(cursor)
    assert decode_cursor(text) == cursor
    assert text.isascii()
    assert not {*text} & {*"+/=&? \n"}  # as it is in an address


@given(cursors, st.data())
def test_no_changed_cursor_is_read(cursor: Cursor, data: st.DataObject) -> None:
    text = encode_cursor(cursor)
    at = data.draw(st.integers(0, len(text) - 1))
    sign = data.draw(st.sampled_from("AZaz09-_*é"))
    changed = data.draw(
        st.sampled_from([text[:at], text[:at] + sign + text[at + 1 :], text + sign, text[at:]])
    )
    try:
        found = decode_cursor(changed)
    except ConfigError:
        return
    assert found == cursor  # bits that stand for nothing may differ


@given(st.text())
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cursor"):
        decode_cursor(text)


def packed(body: bytes, version: int = 1) -> str:
    whole = bytes([version]) + zlib.crc32(body).to_bytes(4, "little") + body
    return base64.urlsafe_b64encode(whole).decode().rstrip("=")


def test_a_cursor_of_another_version_or_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="version 9"):
        decode_cursor(packed(b"", version=9))
    with pytest.raises(ConfigError, match="whole cursor"):
        decode_cursor(packed(zlib.compress(bytes(50 << 20))))
    for body in (b"", zlib.compress(b""), zlib.compress(b"\x02\0\0\0{}"), b"no zlib"):
        with pytest.raises(ConfigError, match="whole cursor"):
            decode_cursor(packed(body))


def test_a_hundred_pictures_take_a_few_kilobytes() -> None:
    rows = [Place(str(uuid.uuid4()), 1.5 * n, None, None, 1 / (n + 3), n) for n in range(1, 101)]
    assert len(encode_cursor(Cursor("images", "a cat", 11, rows))) < 6500
