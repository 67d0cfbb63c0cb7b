"""Clean-up of texts before tokenization, and shortening of texts to a width."""

from __future__ import annotations

import html
import string
from collections.abc import Callable, Sequence
from functools import lru_cache

import ftfy

from edje_qdrant.errors import ConfigError

__all__ = ["clean_caption", "clean_captions", "shorten_text"]

_NO_PUNCTUATION = str.maketrans({"_": " ", **dict.fromkeys(string.punctuation.replace("_", ""))})


# Longest text that is cached, to bound the memory of the cache.
_SHORT = 500


def clean_caption(text: str) -> str:
    """Clean a text up as in the model's training.

    Mojibake and HTML entities are repaired, underscores become spaces, ASCII punctuation is
    removed, letters are lower-cased and white space is collapsed. The result is unchanged by a
    second clean-up.

    Source: `canonicalize_text` of open_clip.
    """
    # Cached: a search cleans the same text up three times, to check, encode and rerank it.
    return _cached_clean(text) if len(text) <= _SHORT else _clean(text)


def _clean(text: str) -> str:
    # Once is almost always enough, but removing punctuation can create new mojibake.
    while (cleaned := _clean_once(text)) != text:
        text = cleaned
    return text


_cached_clean = lru_cache(maxsize=1024)(_clean)


def _clean_once(text: str) -> str:
    repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(repaired.translate(_NO_PUNCTUATION).lower().split())


def clean_captions(texts: Sequence[str]) -> list[str]:
    """Clean up several texts.

    Raises:
        ConfigError: A text contains no word or number.
    """
    cleaned = [clean_caption(text) for text in texts]
    for text, clean in zip(texts, cleaned, strict=True):
        if not clean:
            raise ConfigError(f"a text needs at least one word or number; {text!r} has none")
    return cleaned


def shorten_text(text: str, fits: Callable[[str], bool], end: str = "…") -> str:
    """Collapse white space and, if the text does not fit, truncate it and append `end`."""
    text = " ".join(text.split())
    if fits(text):
        return text
    while text and not fits(f"{text}{end}"):
        text = text[:-1].rstrip()
    return f"{text}{end}"
