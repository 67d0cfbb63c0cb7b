from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own custom)

from edje_qdrant.demo.captions import Caption, Mention, describe, mentioned_places
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.places import PLACES_GRID, SceneBatch, SceneParts
from edje_qdrant.demo.scenes import CANVAS, SHAPES, Scene, SceneObject, draw_scenes
from edje_qdrant.model import EDJEModel
from edje_qdrant.training.objectives import Objectives

RED, BLUE, CIRCLE, STAR = 0, 4, SHAPES.index("circle"), SHAPES.index("star")
SMALL, LARGE = 0, 1
PLAIN = Objectives(words=0.0, recovery=0.0)


def scene(*objects: tuple[int, int, int, float, float]) -> Scene:
    return Scene(tuple(SceneObject(s, c, z, x, y, 60, 0, 0.0) for s, c, z, x, y in objects), 0)


def test_places_are_those_of_the_mentioned_objects_in_the_order_of_the_text():
    shown = scene((CIRCLE, RED, SMALL, 40, 200), (STAR, BLUE, LARGE, CANVAS - 40, 100))
    mentions = (Mention(STAR, BLUE), Mention(CIRCLE, RED, SMALL))
    found = mentioned_places([Caption("", mentions)], [shown], 16)
    assert found.tolist() == [[[13, 6], [2, 12], [-1, -1]]]


@pytest.mark.parametrize(
    ("mention", "known"),
    [
        (Mention(CIRCLE, RED), False),  # two of them
        (Mention(CIRCLE, RED, LARGE), True),
        (Mention(STAR, RED), False),  # none
    ],
)
def test_a_place_is_known_only_of_a_single_object(mention, known):
    shown = scene((CIRCLE, RED, SMALL, 40, 200), (CIRCLE, RED, LARGE, 200, 40))
    found = mentioned_places([Caption("", (mention,))], [shown], 16)
    assert (found[0, 0] >= 0).all() == known


def test_only_mentions_with_a_shape_have_a_place_for_only_they_have_a_word_for_it():
    shown = scene((CIRCLE, RED, SMALL, 40, 200), (STAR, BLUE, LARGE, CANVAS - 40, 100))
    found = mentioned_places([Caption("", (Mention(-1, RED), Mention(STAR, -1)))], [shown], 16)
    assert found.tolist() == [[[13, 6], [-1, -1], [-1, -1]]]


@pytest.fixture(scope="module")
def model() -> EDJEModel:
    return EDJEModel.from_pretrained("demo", device="cpu")


def batch_of(model: EDJEModel, count: int) -> SceneBatch:
    rng = np.random.default_rng(3)
    shown = list(draw_scenes("train", 5, count))
    captions = [describe(s, rng) for s in shown]
    ids, mask = model.tokenize([c.text for c in captions])
    noise = torch.Generator().manual_seed(0)
    near = torch.eye(count, 8)
    return SceneBatch(
        vision_tokens=torch.randn(count, 64, model.config.vision_hidden_size, generator=noise),
        image_embeddings=near,
        text_embeddings=near,
        input_ids=ids,
        attention_mask=mask,
        image_ids=torch.arange(count),
        caption_ids=torch.arange(count),
        places=torch.from_numpy(mentioned_places(captions, shown, PLACES_GRID)),
    )


def test_the_loss_is_the_cross_entropy_of_each_mention_at_its_shape_word(model):
    torch.manual_seed(0)
    parts, batch = SceneParts(model, PLAIN, weight=0.5), batch_of(model, 12)
    assert (batch.places[:, 2, 0] >= 0).any()  # at least one caption has three mentions
    words = set(model.tokenizer.convert_tokens_to_ids(list(SHAPES)))
    losses, heads = [], parts.heads
    assert heads is not None
    with torch.no_grad():
        found = parts(batch)
        states = model.joint_encoder.hidden_states(
            batch.input_ids, batch.attention_mask, model.adapter(batch.vision_tokens), layer=4
        )
        for row, ids in enumerate(batch.input_ids.tolist()):
            at = [n for n, word in enumerate(ids) if word in words]
            for mention, position in enumerate(at):
                column, line = batch.places[row, mention].tolist()
                if column < 0:
                    continue
                answer = heads(states[row, position])
                across, down = answer[:PLACES_GRID], answer[PLACES_GRID:]
                losses.append(
                    F.cross_entropy(across, torch.tensor(column))
                    + F.cross_entropy(down, torch.tensor(line))
                )
    expected = 0.5 * torch.stack(losses).mean()
    torch.testing.assert_close(found["places"], expected, atol=1e-4, rtol=1e-4)


def test_places_train_the_adapter_and_the_lower_layers(model):
    parts, batch = SceneParts(model, PLAIN, weight=1.0), batch_of(model, 4)
    layers = model.joint_encoder.language_model.bert.encoder.layer
    try:
        parts(batch)["places"].backward()
        assert model.adapter.query.grad.abs().sum() > 0
        assert layers[3].output.dense.weight.grad.abs().sum() > 0
        assert layers[4].output.dense.weight.grad is None
    finally:
        parts.zero_grad(set_to_none=True)


def test_a_weight_of_zero_leaves_the_general_losses(model):
    with torch.no_grad():
        losses = SceneParts(model, PLAIN, weight=0.0)(batch_of(model, 4))
    assert set(losses) == {"matching", "_match_accuracy"}


def test_the_bundled_model_tells_a_caption_from_the_same_one_with_its_relation_reversed(model):
    # Matching alone does not teach this: a model trained without places is right by chance.
    right = []
    shown = list(draw_scenes("test", 7, 60))
    tokens = model.encode_images([draw(s) for s in shown]).tokens
    for s, own in zip(shown, tokens, strict=True):
        first, second = sorted(s.objects, key=lambda o: o.x)[:: len(s.objects) - 1]
        if first.name == second.name or abs(first.x - second.x) < 60:
            continue
        text = f"a {first.name} left of a {second.name}"
        false = text.replace(" left of ", " right of ")
        scores = model.score_pairs([text, false], own[None].repeat(2, 0))
        right.append(scores[0] > scores[1])
    assert len(right) > 40
    assert np.mean(right) > 0.9
