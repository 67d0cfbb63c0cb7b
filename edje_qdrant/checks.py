"""Argument checks that several rooms share."""

from __future__ import annotations

from collections.abc import Sequence

from edje_qdrant.errors import ConfigError
from edje_qdrant.text import clean_caption

__all__ = ["check_number", "check_texts"]


def check_texts(what: str, texts: Sequence[str]) -> None:
    """Refuse what is no list of texts with a word in each.

    Raises:
        ConfigError: It is not; names the first that cannot be used.
    """
    if isinstance(texts, str):
        raise ConfigError(f"{what} is the text {texts!r}; give a list of texts")
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"{what} holds a {type(text).__name__}; give texts")
        if not clean_caption(text):
            raise ConfigError(
                f"{what} holds {text!r}, in which there is no word; say what an image shows"
            )


def check_number(name: str, number: int | None, *, optional: bool = False) -> None:
    """Refuse what is no whole number, 1 or more; `optional` lets None pass.

    Raises:
        ConfigError: It is not.
    """
    if number is None and optional:
        return
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        otherwise = ", or None for all" if optional else ""
        raise ConfigError(f"{name} is {number!r}; give a whole number, 1 or more{otherwise}")
