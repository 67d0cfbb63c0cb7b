"""Captions of scenes, and which captions are true of which scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.demo.scenes import CANVAS, COLOURS, MIN_OFFSET, SHAPES, SIZES, Scene, SceneObject

__all__ = [
    "CHANGES",
    "Caption",
    "Change",
    "Mention",
    "contradict",
    "describe",
    "describe_briefly",
    "mentioned_places",
    "truth_matrix",
    "vocabulary",
]

_OBJECTS, _MENTIONS = 4, 3  # at most
_ANY = -1
# Relation -> (axis, sign) of the offset of the first object's centre from the second's.
_RELATIONS = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
# Changes that make a caption false, and their probabilities.
Change = Literal["relation", "places", "colours", "shapes", "size", "colour"]
CHANGES: tuple[Change, ...] = ("relation", "places", "colours", "shapes", "size", "colour")
_CHANGE_SHARES = (0.35, 0.1, 0.1, 0.1, 0.3, 0.05)
_WORDS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
}
_ADDITIONS = (", and ", " with ", ", and also ")
_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
_OPENINGS = ("", "", "", "a picture of ", "there is ", "we see ", "this shows ")


@dataclass(frozen=True, slots=True)
class Mention:
    """What a caption says of one object.

    Attributes:
        shape: Index into `SHAPES`, or -1 if the caption does not say.
        colour: Index into `COLOURS`, or -1.
        size: Index into `SIZES`, or -1.
    """

    shape: int
    colour: int
    size: int = _ANY

    def fits(self, item: SceneObject) -> bool:
        """Return whether this is said of the object."""
        return (
            self.shape in (_ANY, item.shape)
            and self.colour in (_ANY, item.colour)
            and self.size in (_ANY, item.size)
        )


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption's text and the facts it states.

    Attributes:
        text: The words.
        mentions: Different objects, in the order of the text.
        relations: (i, relation, j): the relation of mention i to mention j.
    """

    text: str
    mentions: tuple[Mention, ...]
    relations: tuple[tuple[int, str, int], ...] = ()


def describe(scene: Scene, rng: np.random.Generator) -> Caption:
    """Write a true caption of two or three objects and the relation of two of them."""
    order = [scene.objects[i] for i in rng.permutation(len(scene.objects))]
    order = order[: 3 if rng.random() < 0.15 else 2]
    mentions = tuple(_mention(o, rng) for o in order)
    relations = tuple((0, relation, 1) for relation in _relations(order[0], order[1]))
    return Caption(_write(mentions, relations, rng), mentions, relations)


def describe_briefly(scene: Scene, rng: np.random.Generator) -> Caption:
    """Write a true text of one or two objects, without a relation, and perhaps of one word."""
    chosen = rng.permutation(len(scene.objects))[: 1 if rng.random() < 0.7 else 2]
    mentions = tuple(_brief_mention(scene.objects[i], rng) for i in chosen)
    return Caption(_write(mentions, (), rng), mentions)


def contradict(caption: Caption, rng: np.random.Generator, change: Change | None = None) -> Caption:
    """Change one fact of a caption, which makes it most likely false.

    A relation is reversed, two objects swap their colours, shapes or places, or one size or colour
    changes. The result may be true by chance; `truth_matrix` tells.

    Args:
        caption: A text without a relation has one of its words replaced, whatever `change` is.
        rng: For all choices.
        change: Drawn by default. Where a caption has no size, `size` changes a colour.
    """
    if not caption.relations:
        return _contradict_briefly(caption, rng)
    first, second, *rest = caption.mentions
    relations = caption.relations
    change = change or CHANGES[rng.choice(len(CHANGES), p=_CHANGE_SHARES)]
    if change == "relation":
        turned = int(rng.integers(len(relations)))
        relations = tuple(
            (i, _OPPOSITE[r] if n == turned else r, j) for n, (i, r, j) in enumerate(relations)
        )
    elif change == "places":
        first, second = second, first
    elif change == "colours":
        first, second = (
            replace(first, colour=second.colour),
            replace(second, colour=first.colour),
        )
    elif change == "shapes":
        first, second = replace(first, shape=second.shape), replace(second, shape=first.shape)
    elif change == "size" and first.size != _ANY and (second.size == _ANY or rng.random() < 0.5):
        first = replace(first, size=1 - first.size)
    elif change == "size" and second.size != _ANY:
        second = replace(second, size=1 - second.size)
    else:
        other = (first.colour + int(rng.integers(1, len(COLOURS)))) % len(COLOURS)
        first = replace(first, colour=other)
    mentions = (first, second, *rest)
    return Caption(_write(mentions, relations, rng), mentions, relations)


def _contradict_briefly(caption: Caption, rng: np.random.Generator) -> Caption:
    mentions = list(caption.mentions)
    place = int(rng.integers(len(mentions)))
    chosen = mentions[place]
    kinds = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}
    said = [kind for kind in kinds if getattr(chosen, kind) != _ANY]
    kind = said[rng.integers(len(said))]
    values = len(kinds[kind])
    other = (getattr(chosen, kind) + int(rng.integers(1, values))) % values
    mentions[place] = replace(chosen, **{kind: other})
    return Caption(_write(tuple(mentions), (), rng), tuple(mentions))


def _write(
    mentions: tuple[Mention, ...],
    relations: tuple[tuple[int, str, int], ...],
    rng: np.random.Generator,
) -> str:
    phrases = [_phrase(m, rng) for m in mentions]
    if not relations:
        return " and ".join(phrases)
    words = " and ".join(_WORDS[r][rng.integers(len(_WORDS[r]))] for _, r, _ in relations)
    text = f"{_OPENINGS[rng.integers(len(_OPENINGS))]}{phrases[0]} {words} {phrases[1]}"
    if len(phrases) == 3:
        text = f"{text}{_ADDITIONS[rng.integers(len(_ADDITIONS))]}{phrases[2]}"
    return text


def _mention(item: SceneObject, rng: np.random.Generator) -> Mention:
    return Mention(item.shape, item.colour, item.size if rng.random() < 0.7 else _ANY)


def _brief_mention(item: SceneObject, rng: np.random.Generator) -> Mention:
    """Say shape and colour, or one of them, and perhaps the size of a shape."""
    said = rng.choice(3, p=(0.35, 0.3, 0.35))
    size = item.size if said < 2 and rng.random() < 0.3 else _ANY
    return Mention(item.shape if said < 2 else _ANY, item.colour if said != 1 else _ANY, size)


def _phrase(mention: Mention, rng: np.random.Generator) -> str:
    words = [COLOURS[mention.colour]] if mention.colour != _ANY else []
    words += [SHAPES[mention.shape]] if mention.shape != _ANY else []
    if mention.size != _ANY:
        sizes = _SIZE_WORDS[SIZES[mention.size]]
        words.insert(0, sizes[rng.integers(len(sizes))])
    if _ANY in (mention.shape, mention.colour) and (mention.shape == _ANY or rng.random() < 0.5):
        return " ".join(words)
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _relations(first: SceneObject, second: SceneObject) -> list[str]:
    """Return the relation along the larger offset, or both if the offsets are about equal."""
    dx, dy = first.x - second.x, first.y - second.y
    across, along = "left" if dx < 0 else "right", "above" if dy < 0 else "below"
    if abs(dx) > 1.8 * abs(dy):
        return [across]
    if abs(dy) > 1.8 * abs(dx):
        return [along]
    return [along, across]


def truth_matrix(captions: Sequence[Caption], scenes: Sequence[Scene]) -> NDArray[np.bool_]:
    """Compute which captions are true of which scenes.

    A relation is true from an offset of `MIN_OFFSET` px along its axis, even if the offset along
    the other axis is larger.

    Returns:
        `(captions, scenes)` bool.
    """
    said = np.full((len(captions), _MENTIONS, 3), _ANY)
    # The stated relations, at most two: mention i, mention j, axis, sign.
    stated = np.zeros((2, len(captions)), dtype=bool)
    relation = np.zeros((2, 4, len(captions)), dtype=int)
    for c, caption in enumerate(captions):
        for m, mention in enumerate(caption.mentions):
            said[c, m] = mention.shape, mention.colour, mention.size
        for r, (i, name, j) in enumerate(caption.relations):
            stated[r, c] = True
            relation[r, :, c] = i, j, *_RELATIONS[name]
    seen = np.full((len(scenes), _OBJECTS, 3), -2)
    place = np.zeros((len(scenes), _OBJECTS, 2))
    for s, scene in enumerate(scenes):
        for o, item in enumerate(scene.objects):
            seen[s, o] = item.shape, item.colour, item.size
            place[s, o] = item.x, item.y
    # fits[c, s, m, o]: mention m of caption c could be object o of scene s.
    equal = said[:, None, :, None, :] == seen[None, :, None, :, :]
    fits = (equal | (said == _ANY)[:, None, :, None, :]).all(-1)
    fits &= (seen[:, :, 0] >= 0)[None, :, None, :]
    made = np.array([len(c.mentions) for c in captions])
    fits |= (np.arange(_MENTIONS) >= made[:, None])[:, None, :, None]  # unused mentions
    true = np.zeros((len(captions), len(scenes)), dtype=bool)
    for chosen in permutations(range(_OBJECTS), _MENTIONS):
        holds = np.logical_and.reduce([fits[:, :, m, o] for m, o in enumerate(chosen)])
        for is_stated, (i, j, axis, sign) in zip(stated, relation, strict=True):
            first, second = np.array(chosen)[i], np.array(chosen)[j]
            offset = (place[:, first, axis] - place[:, second, axis]) * sign  # (s, c)
            holds &= (offset >= MIN_OFFSET).T | ~is_stated[:, None]
        true |= holds
    return true


def mentioned_places(
    captions: Sequence[Caption], scenes: Sequence[Scene], grid: int
) -> NDArray[np.int64]:
    """Return where the objects that each caption mentions lie in its own scene.

    Args:
        captions: `b` captions.
        scenes: Their scenes.
        grid: Number of columns, and of rows, that a scene is divided into.

    Returns:
        `(b, 3, 2)` column and row of the centre of each mention with a shape, in the order of the
        text; -1 where the caption has fewer, or where a mention fits none or several of the scene's
        objects.
    """
    places = np.full((len(captions), _MENTIONS, 2), _ANY, dtype=np.int64)
    for c, (caption, scene) in enumerate(zip(captions, scenes, strict=True)):
        for m, mention in enumerate(m for m in caption.mentions if m.shape != _ANY):
            found = [o for o in scene.objects if mention.fits(o)]
            if len(found) == 1:
                places[c, m] = [int(z * grid / CANVAS) for z in (found[0].x, found[0].y)]
    return places


def vocabulary() -> list[str]:
    """Return all words of captions, sorted."""
    phrases = [*COLOURS, *SHAPES, *_OPENINGS, "a an and with also"]
    phrases += [w for words in (*_WORDS.values(), *_SIZE_WORDS.values()) for w in words]
    return sorted({word for phrase in phrases for word in phrase.split()})
