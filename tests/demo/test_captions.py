from __future__ import annotations

from itertools import permutations

import numpy as np

from edje_qdrant.demo.captions import (
    Caption,
    Mention,
    contradict,
    describe,
    describe_briefly,
    truth_matrix,
    vocabulary,
)
from edje_qdrant.demo.scenes import COLOURS, MIN_OFFSET, SHAPES, Scene, SceneObject, draw_scenes
from edje_qdrant.encoders import clean_caption

RED, BLUE, CIRCLE, SQUARE = (
    COLOURS.index("red"),
    COLOURS.index("blue"),
    SHAPES.index("circle"),
    SHAPES.index("square"),
)


def scene(*objects: tuple[int, int, int, float, float]) -> Scene:
    return Scene(tuple(SceneObject(s, c, z, x, y, 60, 0, 0.0) for s, c, z, x, y in objects), 0)


def plainly_true(caption: Caption, candidate: Scene) -> bool:
    """The same question, one pair at a time."""
    for chosen in permutations(candidate.objects, len(caption.mentions)):
        fits = all(
            m.shape in (-1, o.shape) and m.colour in (-1, o.colour) and m.size in (-1, o.size)
            for m, o in zip(caption.mentions, chosen, strict=True)
        )
        holds = True
        for i, relation, j in caption.relations:
            dx, dy = chosen[i].x - chosen[j].x, chosen[i].y - chosen[j].y
            offset = {"left": -dx, "right": dx, "above": -dy, "below": dy}[relation]
            holds &= offset >= MIN_OFFSET
        if fits and holds:
            return True
    return False


def test_every_caption_is_true_of_its_own_scene():
    scenes = list(draw_scenes("train", 1, 400))
    rng = np.random.default_rng(0)
    captions = [describe(s, rng) for s in scenes]
    assert truth_matrix(captions, scenes).diagonal().all()


def test_truth_agrees_with_asking_pair_by_pair():
    scenes = list(draw_scenes("train", 2, 120))
    # Few kinds of objects, so that much is true of several scenes.
    scenes = [
        Scene(
            tuple(
                SceneObject(o.shape % 2, o.colour % 2, o.size, o.x, o.y, o.diameter, 0, 0.0)
                for o in s.objects
            ),
            0,
        )
        for s in scenes
    ]
    rng = np.random.default_rng(0)
    captions = [describe(s, rng) for s in scenes]
    expected = [[plainly_true(c, s) for s in scenes] for c in captions]
    table = truth_matrix(captions, scenes)
    assert table.tolist() == expected
    assert 0.01 < table.mean() < 0.9


def test_colour_and_shape_are_bound_and_relations_have_a_direction():
    pictured = scene((CIRCLE, RED, 0, 60, 128), (SQUARE, BLUE, 1, 200, 128))
    swapped = scene((CIRCLE, BLUE, 0, 60, 128), (SQUARE, RED, 1, 200, 128))
    mirrored = scene((CIRCLE, RED, 0, 200, 128), (SQUARE, BLUE, 1, 60, 128))
    caption = Caption(
        "a red circle left of a blue square",
        (Mention(CIRCLE, RED), Mention(SQUARE, BLUE)),
        ((0, "left", 1),),
    )
    assert truth_matrix([caption], [pictured, swapped, mirrored]).tolist() == [[True, False, False]]


def test_each_mention_needs_an_object_of_its_own():
    caption = Caption("two red circles", (Mention(CIRCLE, RED), Mention(CIRCLE, RED)))
    one = scene((CIRCLE, RED, 0, 60, 128), (SQUARE, BLUE, 1, 200, 128))
    two = scene((CIRCLE, RED, 0, 60, 128), (CIRCLE, RED, 1, 200, 128))
    assert truth_matrix([caption], [one, two]).tolist() == [[False, True]]


def test_a_contradiction_speaks_of_the_same_things_and_is_mostly_false():
    scenes = list(draw_scenes("train", 6, 600))
    rng = np.random.default_rng(0)
    captions = [describe(s, rng) for s in scenes]
    false = [contradict(c, rng) for c in captions]
    assert truth_matrix(false, scenes).diagonal().mean() < 0.1
    for caption, changed in zip(captions, false, strict=True):
        assert len(changed.mentions) == len(caption.mentions)
        assert changed.mentions[2:] == caption.mentions[2:]
        assert len(changed.relations) == len(caption.relations)
    words = set(vocabulary())
    assert {w for c in false for w in clean_caption(c.text).split()} <= words


def test_captions_use_only_the_vocabulary_and_vary():
    words = set(vocabulary())
    rng = np.random.default_rng(0)
    texts = [clean_caption(describe(s, rng).text) for s in draw_scenes("train", 4, 1000)]
    assert {w for text in texts for w in text.split()} == words
    assert len(set(texts)) > 990


def test_brief_texts_are_true_of_their_scenes_and_name_single_things():
    scenes = list(draw_scenes("train", 1, 300))
    rng = np.random.default_rng(0)
    texts = [describe_briefly(s, rng) for s in scenes]
    assert truth_matrix(texts, scenes).diagonal().all()
    assert not any(t.relations for t in texts)
    words = {t.text for t in texts}
    assert words & set(SHAPES)
    assert words & set(COLOURS)
    assert any(" and " in t for t in words)


def test_a_contradiction_of_a_brief_text_replaces_one_word():
    scenes = list(draw_scenes("train", 2, 300))
    rng = np.random.default_rng(0)
    texts = [describe_briefly(s, rng) for s in scenes]
    false = [contradict(t, rng) for t in texts]
    for text, changed in zip(texts, false, strict=True):
        before = [v for m in text.mentions for v in (m.shape, m.colour, m.size)]
        after = [v for m in changed.mentions for v in (m.shape, m.colour, m.size)]
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        assert [v == -1 for v in before] == [v == -1 for v in after]
    assert truth_matrix(false, scenes).diagonal().mean() < 0.2
