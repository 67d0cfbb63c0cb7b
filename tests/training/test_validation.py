from __future__ import annotations

import numpy as np
import torch
from tiny_edje import build_tiny_model

from edje_qdrant.training.validation import search_validation


def test_it_measures_what_scoring_every_candidate_by_itself_gives():
    model = build_tiny_model(dropout=0.0).eval()
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(12, 16, 24, generator=generator)
    texts = [f"image {letter}" for letter in "abcdefghijkl"]
    embeddings = torch.nn.functional.normalize(torch.randn(12, 24, generator=generator), dim=-1)
    right = np.arange(12)
    found = search_validation(
        model, texts, right, embeddings.numpy(), lambda: torch.split(states, 4), num_candidates=3
    )
    with torch.no_grad():
        figures = found()
        tokens = model.adapter(states)
    first = model.encode_texts(texts) @ embeddings.numpy().T
    places = []
    for query, text in enumerate(texts):
        nearest = np.argsort(-first[query])[:3]
        scores = model.score(text, tokens[torch.from_numpy(nearest)])
        ranked = nearest[np.argsort(-scores)].tolist()
        places.append(ranked.index(query) if query in ranked else 9)
    assert figures["R@1"] == np.mean([place < 1 for place in places])
    assert figures["R@5"] == figures["R@10"] == np.mean([place < 5 for place in places])
    assert figures["first R@1"] == np.mean(first.argmax(axis=1) == right)
    nearest = (-first).argsort(axis=1)[:, :10]
    assert figures["first R@10"] == np.mean((nearest == right[:, None]).any(axis=1))
