"""Explain a match: the regions and words that it rests on.

Regions: integrated gradients from an image of one colour to the image, through the adapter. Words:
each is masked in turn, and the joint encoder's masked-language-model head gives its probability
with the image.
"""

from __future__ import annotations

import re
import string
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edje_qdrant.checks import check_kind
from edje_qdrant.encoders import clean_caption, clean_captions
from edje_qdrant.errors import ConfigError
from edje_qdrant.explain.explanation import Explanation
from edje_qdrant.explain.integrated_gradients import TokenPath, gradients
from edje_qdrant.images import open_upright
from edje_qdrant.model import EDJEModel

__all__ = ["can_explain", "explain_match"]

# Total relevance (logits) below which there is no heat: rounding errors alone reach less.
_NOTHING = 1e-3


def can_explain(model: EDJEModel) -> bool:
    """Return whether a model's matches can be explained: its encoder has a `patch_grid`."""
    return getattr(model.encoder, "patch_grid", None) is not None


def explain_match(model: EDJEModel, text: str, image: Image.Image | str | Path) -> Explanation:
    """Compute the regions of an image and the words of a text that their match rests on.

    Per word, this takes about as long as scoring 50 images.

    Args:
        model: Its encoder must have a `patch_grid`, as those for SigLIP and open_clip do.
        text: The query.
        image: An image of any mode, or a file, which is rotated by its EXIF orientation.

    Raises:
        ConfigError: The text has no words, or the encoder has no `patch_grid`.
        ImageReadError: The image cannot be read.
    """
    check_kind("model", model, EDJEModel, "an EDJEModel")
    check_kind("text", text, str, "a text")
    check_kind("image", image, (Image.Image, str, Path), "an image that Pillow opened, or a path")
    with torch.inference_mode(False):  # ids made in inference mode would break autograd
        words = _Words(model, text)
    opened = image if isinstance(image, Image.Image) else open_upright(image)
    rows, columns = _grid(model)
    pixels = model.preprocess([opened])
    area = model.encoder.seen_area(*opened.size)
    with model.inference():
        vision_tokens = model.encoder.encode_pixels(pixels)[1]  # (1, n, d_v)
        tokens = model.adapter(vision_tokens).to("cpu", torch.float16)
        one_colour = pixels.mean((2, 3), keepdim=True).expand_as(pixels)
        plain = model.encoder.encode_pixels(one_colour)[1]
    score = float(model.score(text, tokens)[0])
    if vision_tokens.shape[1] != rows * columns:
        raise ConfigError(
            f"the encoder {model.encoder.name} makes {vision_tokens.shape[1]} vision tokens, but "
            f"its patch_grid is {rows} x {columns}; correct its patch_grid"
        )
    with gradients(model):
        # Copies: tensors created in inference mode cannot have gradients.
        path = TokenPath(model.adapter, plain[0].clone(), vision_tokens[0].clone())
        patches, by_token = path.relevance(words.match(path.tokens))
        weights = np.zeros(len(words.words), np.float32)
        heat = np.zeros((len(words.words), rows * columns), np.float32)
        for number in range(len(words.words)):
            if words.is_read(number):
                logits, weights[number] = words.masked(number, path.tokens)
                heat[number] = _heat(path.relevance(logits)[0])
    return Explanation(
        text=text,
        score=score,
        heat=_heat(patches).reshape(rows, columns),
        words=words.words,
        word_weights=weights,
        word_heat=heat.reshape(-1, rows, columns),
        tokens=by_token.cpu().numpy(),
        area=area,
    )


class _Words:
    """A text's words, the positions of their pieces, and their logits."""

    def __init__(self, model: EDJEModel, text: str) -> None:
        self._joint_encoder = model.joint_encoder
        self._ids, self._mask = model.tokenize([text])
        self._hide = model.tokenizer.mask_token_id
        (cleaned,) = clean_captions([text])
        spans = [match.span() for match in re.finditer(r"\S+", cleaned)]
        self.words = _as_written(text, cleaned.split())
        encoded = model.tokenizer(
            cleaned,
            truncation=True,
            max_length=model.joint_encoder.max_caption_length,
            return_offsets_mapping=True,
        )
        pieces = [
            (place, start)
            for place, (start, end) in enumerate(encoded["offset_mapping"])
            if end > start  # neither [CLS] nor [SEP]
        ]
        self._places = [[p for p, at in pieces if start <= at < end] for start, end in spans]

    def is_read(self, word: int) -> bool:
        """Return whether the model reads a word; long texts are cut."""
        return bool(self._places[word])

    def match(self, tokens: Tensor) -> Tensor:
        """Return the match's logits `(s,)` for tokens `(s, m, d_text)`."""
        s = len(tokens)
        logits: Tensor = self._joint_encoder(
            self._ids.expand(s, -1), self._mask.expand(s, -1), tokens
        )
        return logits

    def masked(self, word: int, tokens: Tensor) -> tuple[Tensor, float]:
        """Return a masked word's logits `(s,)`, and the gain of its log-probability along the path.

        All pieces of a word are masked together, and their logits are summed.
        """
        places, s = self._places[word], len(tokens)
        pieces = self._ids[0, places]
        ids = self._ids.clone()
        ids[0, places] = self._hide
        where = torch.zeros_like(ids, dtype=torch.bool)
        where[0, places] = True
        logits = self._joint_encoder.mlm_logits(
            ids.expand(s, -1), self._mask.expand(s, -1), tokens, where.expand(s, -1)
        ).view(s, len(places), -1)  # (s, pieces, vocabulary)
        chosen = pieces.view(1, -1, 1).expand(s, -1, 1)
        first, *_, last = logits.detach().float().log_softmax(-1).gather(2, chosen).sum((1, 2))
        return logits.gather(2, chosen).sum((1, 2)), float(last - first)


def _as_written(text: str, cleaned: list[str]) -> tuple[str, ...]:
    """Return the words as written, or after clean-up if that splits the text differently."""
    written = [word for word in text.split() if clean_caption(word)]
    if [clean_caption(word) for word in written] != cleaned:
        return tuple(cleaned)
    return tuple(word.strip(string.punctuation) or word for word in written)


def _grid(model: EDJEModel) -> tuple[int, int]:
    if not can_explain(model):
        raise ConfigError(
            f"the encoder {model.encoder.name} has no patch_grid; give it a patch_grid and a "
            "seen_area (see edje_qdrant.encoders.Encoder) to explain its matches"
        )
    rows, columns = model.encoder.patch_grid
    return rows, columns


def _heat(relevance: Tensor) -> NDArray[np.float32]:
    """Keep positive relevance and scale it to sum to one; almost none becomes all zeros."""
    values = relevance.clamp_min(0).cpu().numpy()
    total = values.sum()
    heat: NDArray[np.float32] = values / total if total > _NOTHING else np.zeros_like(values)
    return heat
