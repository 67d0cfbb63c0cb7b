from __future__ import annotations

import base64
import uuid
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edje_qdrant.errors import ConfigError
from edje_qdrant.search.results import SearchHit, SearchResult
from edje_qdrant.types import Timings

floats = st.floats(allow_nan=False, allow_infinity=False)
logits = st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False)
read = SearchResult.from_cursor


@st.composite
def results(draw: st.DrawFn) -> SearchResult:
    first = draw(st.integers(1, 10**6))
    remaining = tuple(
        SearchHit(
            image_id=str(draw(st.uuids())),
            score=draw(logits),
            rank=first + place,
            retrieval_score=draw(floats),
            retrieval_rank=draw(st.integers(1, 10**6)),
            payload={},
            probability=draw(st.none() | floats),
            fusion_score=draw(st.none() | floats),
        )
        for place in range(draw(st.integers(1, 20)))
    )
    return SearchResult(
        query=draw(st.text()),
        hits=(),
        timings=Timings(0, 0, 0, 0),
        degraded=draw(st.booleans()),
        reason=draw(st.none() | st.text()),
        candidates=draw(st.integers(0, 10**6)),
        scored=draw(st.integers(0, 10**6)),
        remaining=remaining,
        group_by=draw(st.none() | st.text()),
        source=draw(st.text()),
    )


def cursor_of(result: SearchResult) -> str:
    assert result.cursor is not None
    return result.cursor


@given(results())
def test_what_was_written_is_read(result: SearchResult) -> None:
    text = cursor_of(result)
    assert read(text) == result
    assert text.isascii()
    assert not {*text} & {*"+/=&? \n"}  # as it is in an address


@given(results(), st.data())
def test_no_changed_cursor_is_read(result: SearchResult, data: st.DataObject) -> None:
    text = cursor_of(result)
    at = data.draw(st.integers(0, len(text) - 1))
    sign = data.draw(st.sampled_from("AZaz09-_*é"))
    changed = data.draw(
        st.sampled_from([text[:at], text[:at] + sign + text[at + 1 :], text + sign, text[at:]])
    )
    try:
        found = read(changed)
    except ConfigError:
        return
    assert found == result  # bits that stand for nothing may differ


@given(st.text())
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cursor"):
        read(text)


def packed(body: bytes, version: int = 1) -> str:
    whole = bytes([version]) + zlib.crc32(body).to_bytes(4, "little") + body
    return base64.urlsafe_b64encode(whole).decode().rstrip("=")


def test_a_cursor_of_another_version_or_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="version 9"):
        read(packed(b"", version=9))
    with pytest.raises(ConfigError, match="whole cursor"):
        read(packed(zlib.compress(bytes(50 << 20))))
    for body in (b"", zlib.compress(b""), zlib.compress(b"\x02\0\0\0{}"), b"no zlib"):
        with pytest.raises(ConfigError, match="whole cursor"):
            read(packed(body))


def test_a_hundred_pictures_take_a_few_kilobytes() -> None:
    hits = tuple(
        SearchHit(str(uuid.uuid4()), 1.5 * n, 10 + n, 1 / (n + 3), n, {}) for n in range(1, 101)
    )
    result = SearchResult("a cat", (), Timings(0, 0, 0, 0), remaining=hits, source="images")
    assert len(cursor_of(result)) < 6500


def test_a_cursor_that_an_earlier_version_wrote_is_read() -> None:
    text = (
        "AQI4AMV4nF2MsQ3CMBBFDQWscXJNgwAh0YRNkBMfxooSw9lGQgjBLizACBmBMRiBknMSKLji_te7Z9-FEGfp"
        "XaQC5QqkrZRBD1M5AXmISKcEFRBqKG3AhEnVJdM5V0Mu7jd5Kx2tRpfuGg0pjZphoIjpBSrv6iSFHUIetcEA"
        "bgsLqDxgnVy2ClVrq1VAz-aSgS8ctd_MLqKdtbh1ZSBEk3X12eerzyYbie_8_CHza1fff_nIxrw_Y249vQ"
    )
    result = read(text)
    assert (result.source, result.query, result.group_by) == ("images 1", "a red kite", "video")
    assert (result.degraded, result.reason) == (True, "the budget of 5 ms ended")
    assert (result.candidates, result.scored) == (7, 3)
    first, second = result.remaining
    assert (first.rank, first.score, first.probability) == (4, 1.5, 0.25)
    assert (first.retrieval_score, first.retrieval_rank, first.fusion_score) == (0.125, 6, 0.75)
    assert first.image_id == "00000000-0000-4000-8000-000000000001"
    assert (second.rank, second.score, second.probability, second.fusion_score) == (
        5, None, None, None,
    )  # fmt: skip
