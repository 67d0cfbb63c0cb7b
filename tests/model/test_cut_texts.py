"""Texts that are longer than a model reads are named, with the reason, wherever they are used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from searching import make_collection
from torch import Tensor

from edje_qdrant import EDJEModel, TwoStageRetriever
from edje_qdrant.model.cut_texts import _cut, cut_texts
from edje_qdrant.search.results import SearchResult


@pytest.fixture(scope="module")
def demo() -> EDJEModel:
    return EDJEModel.from_pretrained("demo", device="cpu")


def words(count: int, word: str = "red") -> str:
    return " ".join([word] * count)


def test_it_begins_where_the_last_word_has_no_effect(demo: EDJEModel) -> None:
    first = demo.encoder.tokenize(["a"]).shape[1] - 2
    joint = demo.joint_encoder.max_caption_length - 2
    assert first < joint
    reasons = cut_texts(demo, [words(n) for n in range(1, joint + 3)])
    assert [reason is not None for reason in reasons] == [n > first for n in range(1, joint + 3)]
    assert "joint" not in str(reasons[joint - 1])
    assert f"the joint encoder reads {joint} of its {joint + 2} tokens" in str(reasons[-1])
    for count, read in ((first - 1, True), (first, False)):
        star, ring = demo.encode_texts([words(count) + " star", words(count) + " ring"])
        assert (star == ring).all() != read


def test_the_cut_may_be_within_a_word(demo: EDJEModel) -> None:
    (reason,) = cut_texts(demo, [" ".join("xq" * 30 for _ in range(3))])
    assert reason is not None


def test_signs_at_the_end_are_no_text(demo: EDJEModel) -> None:
    assert cut_texts(demo, [words(5) + "." * 100, words(5) + " " * 100, "é" * 20]) == [None] * 3


def test_a_full_row_whose_padding_is_the_end_token() -> None:
    def tokenize(texts: list[str]) -> Tensor:
        rows = [[ord(c) for c in text[:7]] + [1] * 8 for text in texts]  # 1 ends and pads
        return torch.tensor([row[:8] for row in rows])

    assert _cut(tokenize, ["abcdef", "abcdefg", "abcdefgh", "abcdefgh."], 1) == [0, 0, 8, 8]


def test_texts_that_were_just_searched_for_are_not_tokenized_again(
    tmp_path: Path, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [words(9, "dog"), words(9, "boat")]
    with TwoStageRetriever(make_collection(tmp_path, tiny_model), tiny_model) as retriever:
        expected = [result.truncated for result in retriever.search_batch(texts)]
        kind, calls = type(tiny_model.encoder.tokenizer), []
        call = kind.__call__
        monkeypatch.setattr(
            kind, "__call__", lambda *a, **given: (calls.append(a[1]), call(*a, **given))[1]
        )
        texts = [texts[1], texts[0]]
        results = retriever.search_batch(texts)
        assert [result.truncated for result in results] == expected[::-1]
        # Once to encode, and once without the last letters of those that fill the row.
        assert len(calls) == 1 + any(expected)


def test_an_encoder_that_does_not_tell_is_left_out(
    demo: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(demo.encoder), "tokenize", None)
    texts = [words(50), words(70)]
    short, long = cut_texts(demo, texts)
    assert short is None
    assert "first stage" not in str(long)


def test_results_say_so(tmp_path: Path, tiny_model: EDJEModel) -> None:
    long = words(80, "dog")
    with TwoStageRetriever(make_collection(tmp_path, tiny_model), tiny_model) as retriever:
        short, cut = retriever.search_batch(["a red square", long], top_k=2)
        assert (short.truncated, short.reason) == (False, None)
        assert (cut.truncated, cut.degraded) == (True, False)
        assert "longer than the model reads" in str(cut.reason)
        assert cut.as_dict()["truncated"] is True
        assert cut.cursor is not None
        assert SearchResult.from_cursor(cut.cursor).truncated
        assert cut.next(1).truncated
        late = retriever.search(long, budget_ms=1e-3)
        assert late.truncated
        assert late.degraded
        assert "; the text is longer" in str(late.reason)
        liked = [cut[0].image_id]
        assert retriever.recommend(liked, text=long).truncated
        assert not retriever.recommend(liked, text="a dog").truncated
        assert not retriever.recommend(liked).truncated
        # The ends of both texts have no effect, which is what the result says.
        assert [hit.score for hit in retriever.search(long + " cat")] == [
            hit.score for hit in retriever.search(long + " tree")
        ]
