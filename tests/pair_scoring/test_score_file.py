from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.pair_scoring import keep_top as pair_keeping
from edje_qdrant.pair_scoring.keep_top import keep_top
from edje_qdrant.pair_scoring.score_file import (
    Pair,
    ScoredPair,
    ScoreFile,
    chunked,
    header_path,
    read_pairs,
    survey,
)

HEADER = {"pairs": 3, "digest": "d", "threshold": None, "encoder": "tiny"}


def pairs_of(*counts: int) -> list[Pair]:
    """Give the n-th image as many captions as the n-th number."""
    return [
        Pair(f"/{picture}.png", f"caption {number}")
        for picture, count in enumerate(counts)
        for number in range(count)
    ]


def scored(pair: Pair, score: float | None = 1.5) -> ScoredPair:
    error = "gone" if score is None else None
    return ScoredPair(pair.image, pair.caption, score, score and 0.25, None, error)


@given(st.lists(st.integers(1, 30), max_size=12), st.integers(1, 8))
def test_chunks_hold_every_pair_once_and_split_only_long_pictures(counts, size):
    pairs = pairs_of(*counts)
    chunks = list(chunked(pairs, size))
    assert [pair for chunk in chunks for pair in chunk] == pairs
    for ours, following in pairwise(chunks):
        assert size <= len(ours) <= 4 * size
        assert ours[-1].image != following[0].image or len(ours) == 4 * size
    # Going on behind any of them cuts as before.
    for number in range(len(chunks)):
        rest = [pair for chunk in chunks[number:] for pair in chunk]
        assert list(chunked(rest, size)) == chunks[number:]


def test_pairs_are_read_in_order_and_told_apart_by_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [{"image": "a.png", "caption": ["one", "two"]}, {"image": "b.png", "caption": "one"}]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    pairs = list(read_pairs(path, None))
    a, b = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    assert pairs == [Pair(a, "one"), Pair(a, "two"), Pair(b, "one")]
    count, digest = survey(pairs)
    assert count == 3
    assert digest == survey(pairs)[1]
    assert len({digest, survey(pairs[::-1])[1], survey(read_pairs(path, "/x"))[1]}) == 3
    path.write_text('{"image": "a.png", "caption": "one"}\n{"image": "a.png", "captoin": "b"}\n')
    with pytest.raises(ConfigError, match=r'pairs\.jsonl:2: "caption" is missing'):
        list(read_pairs(path, None))


def test_a_file_cut_anywhere_goes_on_at_the_last_whole_chunk(tmp_path: Path) -> None:
    chunks = [pairs_of(3), pairs_of(2), pairs_of(4)]
    out = tmp_path / "scores.jsonl"
    lines = [[scored(pair, None if n == 1 else 0.5) for n, pair in enumerate(c)] for c in chunks]
    whole = [b"".join(line.line() for line in chunk) for chunk in lines]
    header_path(out).write_text(json.dumps({"format": 1, **HEADER}))
    everything = b"".join(whole)
    ends = [len(b"".join(whole[: n + 1])) for n in range(3)]
    around = [end + near for end in (0, *ends) for near in (-1, 0, 1)]
    for cut in {*around, *range(0, len(everything), 41)} & {*range(len(everything) + 1)}:
        out.write_bytes(everything[:cut])
        file = ScoreFile(out, HEADER)
        done = 0
        while done < 3 and (found := file.written(chunks[done])) is not None:
            assert found == lines[done]
            done += 1
        for chunk in lines[done:]:
            file.write(chunk)
        file.close()
        assert done == sum(end <= cut for end in ends)
        assert out.read_bytes() == everything


def test_a_changed_line_is_named(tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    chunk = pairs_of(3)
    ScoreFile(out, HEADER).close()
    good = [scored(pair).line() for pair in chunk]
    for bad, message in [
        (b"\0\0\0\n", "not a line of score-pairs"),
        (b"[1]\n", "not a line of score-pairs"),
        (good[1].replace(b"1.5", b'"x"'), "its score or cosine is not a number"),
        (scored(Pair("/9.png", "caption 1")).line(), "it belongs to another pair"),
    ]:
        out.write_bytes(good[0] + bad + good[2])
        file = ScoreFile(out, HEADER)
        with pytest.raises(StoreError, match=rf"scores\.jsonl:2 was not .*{message}.*delete"):
            file.written(chunk)
        file.close()
    out.write_bytes(b"".join(good) + good[0])
    file = ScoreFile(out, HEADER)
    assert file.written(chunk) is not None
    with pytest.raises(StoreError, match="more lines than there are pairs"):
        file.require_end()
    file.close()


def test_one_run_at_a_time_writes_a_file_and_it_stays_that_runs(tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    file = ScoreFile(out, HEADER)
    with pytest.raises(StoreError, match="another process is writing"):
        ScoreFile(out, HEADER)
    file.close()
    for change, message in [
        ({"threshold": 0.5}, "threshold: was none, now 0.5"),
        ({"encoder": "b", "digest": "e"}, 'digest: was "d", now "e"; encoder: was "tiny"'),
    ]:
        with pytest.raises(ConfigError, match=f"{message}.*to start over"):
            ScoreFile(out, {**HEADER, **change})
    ScoreFile(out, HEADER).close()
    header_path(out).write_text("[]")
    with pytest.raises(ConfigError, match=r"scores\.jsonl\.run\.json"):
        ScoreFile(out, HEADER)
    header_path(out).write_text("{")
    with pytest.raises(ConfigError, match=r"scores\.jsonl\.run\.json is damaged"):
        ScoreFile(out, HEADER)


def test_somebody_elses_file_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "mine.jsonl"
    out.write_text("mine\n")
    with pytest.raises(ConfigError, match="exists, but not"):
        ScoreFile(out, HEADER)
    assert out.read_text() == "mine\n"
    assert not header_path(out).exists()
    with pytest.raises(StoreError, match="cannot write"):
        ScoreFile(tmp_path / "no folder" / "scores.jsonl", HEADER)


SCORES = st.one_of(st.none(), st.floats(width=32, allow_nan=False, allow_infinity=False))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(SCORES, st.sampled_from([0.0, -0.0, 1.5, -2.0])), max_size=40),
    st.floats(0.01, 1),
)
def test_the_best_share_is_what_sorting_would_keep(tmp_path_factory, scores, share):
    folder = tmp_path_factory.getbasetemp() / "keeping"
    folder.mkdir(exist_ok=True)
    (pair,) = pairs_of(1)
    plain = [score if score is None else float(str(np.float32(score))) for score in scores]
    (folder / "scores").write_bytes(b"".join(scored(pair, score).line() for score in plain))
    seen = []
    count, lowest = keep_top(folder / "scores", folder / "kept", share, seen.append)

    known = sorted((score for score in plain if score is not None), reverse=True)
    wanted = round(share * len(known))
    assert lowest == (known[wanted - 1] if wanted else None)
    keep = [wanted > 0 and score is not None and score >= known[wanted - 1] for score in plain]
    lines = [json.loads(line) for line in (folder / "kept").read_bytes().splitlines()]
    assert [line["keep"] for line in lines] == keep
    assert [line["score"] for line in lines] == plain
    assert count == sum(keep)
    assert sum(seen) == len(plain)


def test_keeping_reads_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_keeping, "_LINES", 7)
    (pair,) = pairs_of(1)
    scores = np.random.default_rng(0).permutation(50).tolist()
    (tmp_path / "scores").write_bytes(b"".join(scored(pair, float(s)).line() for s in scores))
    assert keep_top(tmp_path / "scores", tmp_path / "kept", 0.3, lambda n: None) == (15, 35.0)
    assert not (tmp_path / "kept.new").exists()
    with (tmp_path / "scores").open("ab") as file:
        file.write(b"torn\n")
    with pytest.raises(StoreError, match="scores:51: not a line of score-pairs"):
        keep_top(tmp_path / "scores", tmp_path / "kept", 0.3, lambda n: None)
