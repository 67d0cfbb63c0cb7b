"""Which texts are longer than a model reads, and by which of its two encoders they are cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.encoders.protocol import Encoder
from edje_qdrant.model.joint_encoder import JointEncoder
from edje_qdrant.text import clean_captions, cut_reason

__all__ = ["cut_texts"]

# A token covers at least one byte of a text, except for those at its start and its end.
_ENDS = 3

# Of each encoder: the number of tokens that it reads of a text, and the token that fills the rest.
_forms: WeakKeyDictionary[Encoder, tuple[int, int]] = WeakKeyDictionary()


class _Model(Protocol):
    """An `EDJEModel`, as far as it reads texts."""

    encoder: Encoder
    joint_encoder: JointEncoder

    def caption_lengths(self, texts: Sequence[str]) -> list[int]:
        """Return how many ids each text has before it is cut."""


def cut_texts(model: _Model, texts: Sequence[str]) -> list[str | None]:
    """Return for each text why it is not read whole; None for one that is.

    The first stage is left out for an encoder without `tokenize`, which the protocol does not ask
    for.

    Args:
        model: The model.
        texts: Any number of texts.

    Raises:
        ConfigError: A text is empty after clean-up.
    """
    cleaned = clean_captions(texts)
    tokenize = getattr(model.encoder, "tokenize", None)
    joint = model.joint_encoder.max_caption_length
    shortest = joint if tokenize is None else min(joint, _form(model.encoder, tokenize)[0])
    reasons: list[str | None] = [None] * len(cleaned)
    long = [row for row, text in enumerate(cleaned) if len(text.encode()) + _ENDS > shortest]
    if not long:
        return reasons
    # All texts, as the model has just read them: it remembers the tokens of its last call.
    lengths = model.caption_lengths(cleaned)
    firsts = [0] * len(cleaned)
    if tokenize is not None:
        firsts = _cut(tokenize, cleaned, _form(model.encoder, tokenize)[1])
    ends = 2  # [CLS] and [SEP]
    for row in long:
        reasons[row] = cut_reason(firsts[row], joint - ends, lengths[row] - ends)
    return reasons


def _form(encoder: Encoder, tokenize: Any) -> tuple[int, int]:
    """Return the number of tokens that the first stage reads, and the token that fills the rest."""
    if encoder not in _forms:
        ids = tokenize(["a"])[0]
        _forms[encoder] = len(ids), int(ids[-1])
    return _forms[encoder]


def _cut(tokenize: Any, texts: Sequence[str], padding: int) -> list[int]:
    """Return for each text how many tokens of it are read, or 0 if it is read whole."""
    # Copied from the encoder's device at once: each look at a row there would wait for the device.
    ids: NDArray[np.int64] = tokenize(texts).cpu().numpy()  # (n, t)
    found = [0] * len(texts)
    # The last token of a full row may be one that ends every text, and be padding too.
    full = np.flatnonzero(ids[:, -2] != padding)
    if len(full):
        # Without its last letter, a text that is read whole has other tokens.
        shorter = [_without_last_letter(texts[row]) for row in full.tolist()]
        same: NDArray[np.int64] = tokenize(shorter).cpu().numpy()
        for row in full[(ids[full] == same).all(axis=1)].tolist():
            found[row] = ids.shape[1]
    return found


def _without_last_letter(text: str) -> str:
    end = len(text)
    while end and not text[end - 1].isalnum():
        end -= 1
    return text[: max(1, end - 1)]
