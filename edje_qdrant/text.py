"""Clean-up of texts before tokenization, and shortening of texts to a width."""

from __future__ import annotations

import html
import string
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

from edje_qdrant.errors import ConfigError

__all__ = ["clean_caption", "clean_captions", "cut_reason", "printable", "shorten_text"]

_NO_PUNCTUATION = str.maketrans({"_": " ", **dict.fromkeys(string.punctuation.replace("_", ""))})


# Control, format and surrogate characters; separators of lines and paragraphs.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # of letters in some scripts, and of emoji


# Longest text that is cached, to bound the memory of the cache.
_SHORT = 500


def printable(text: str) -> str:
    r"""Return a text for one line of a terminal, with what could change the terminal escaped.

    Control characters (line breaks and tabs too), characters that change the direction of text or
    are invisible, and bytes of file names that are no UTF-8 become `\n`, `\x1b`, `\u202e`, `\xff`.

    Example:
        >>> print(printable("two" + chr(10) + "lines.png"))
        two\nlines.png
    """
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _ESCAPED or character in _JOINERS:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


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
    import ftfy  # here, as most commands clean no text up, and its import takes 25 ms

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


def cut_reason(first: int, joint: int, length: int) -> str | None:
    """Return why a text is not read whole, with how much of it is; None if it is.

    Args:
        first: Tokens that the first stage reads of it; 0 if it reads all.
        joint: Tokens that the joint encoder reads, at most, without those at the ends.
        length: Tokens of the text for the joint encoder, without those at the ends.
    """
    parts = []
    if first:
        parts.append(f"the first stage reads {first} tokens of it")
    if length > joint:
        parts.append(f"the joint encoder reads {joint} of its {length} tokens")
    if not parts:
        return None
    return (
        f"the text is longer than the model reads: {' and '.join(parts)}; the rest has no effect "
        "there, so shorten it, or put first what matters"
    )
