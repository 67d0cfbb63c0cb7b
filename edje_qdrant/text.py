"""The clean-up every text goes through before it meets a tokenizer."""

from __future__ import annotations

import html
import string
from collections.abc import Sequence
from functools import lru_cache

import ftfy

from edje_qdrant.errors import ConfigError

__all__ = ["clean_caption", "clean_captions"]

_NO_PUNCTUATION = str.maketrans({"_": " ", **dict.fromkeys(string.punctuation.replace("_", ""))})


# Characters of texts that are remembered, so that a thousand of them are never much.
_SHORT = 500


def clean_caption(text: str) -> str:
    """Return the text as the model was trained to read it.

    Mojibake and HTML entities are mended, underscores become spaces, ASCII punctuation is removed,
    letters are lower-cased and white space is collapsed. Cleaning twice changes nothing more.

    Source: EDJE facts, the model, 4; what open_clip calls canonicalising.
    """
    # A search checks, encodes and reranks the same words, each time after cleaning them.
    return _remembered(text) if len(text) <= _SHORT else _cleaned(text)


def _cleaned(text: str) -> str:
    # Once is enough for anything people write; removed punctuation can leave new mojibake behind.
    while (cleaned := _clean_once(text)) != text:
        text = cleaned
    return text


_remembered = lru_cache(maxsize=1024)(_cleaned)


def _clean_once(text: str) -> str:
    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(mended.translate(_NO_PUNCTUATION).lower().split())


def clean_captions(texts: Sequence[str]) -> list[str]:
    """Clean up several texts.

    Raises:
        ConfigError: Nothing is left of one of them.
    """
    cleaned = [clean_caption(text) for text in texts]
    for text, words in zip(texts, cleaned, strict=True):
        if not words:
            raise ConfigError(f"a text needs at least one word or number; {text!r} has none")
    return cleaned
