"""Argument checks used throughout the package."""

from __future__ import annotations

from collections.abc import Sequence

from edje_qdrant.errors import ConfigError
from edje_qdrant.text import clean_caption

__all__ = ["check_number", "check_texts"]


def check_texts(what: str, texts: Sequence[str]) -> None:
    """Check that an argument is a list of texts, each with at least one word.

    Raises:
        ConfigError: It is not; names the first text that cannot be used.
    """
    if isinstance(texts, str):
        raise ConfigError(f"{what} is the text {texts!r}; give a list of texts")
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"{what} holds a {type(text).__name__}; give texts")
        if not clean_caption(text):
            raise ConfigError(
                f"{what} holds {text!r}, which contains no word; describe what an image shows"
            )


def check_number(name: str, number: int | None, *, least: int = 1, optional: bool = False) -> None:
    """Check that an argument is an integer of at least `least`; `optional` allows None.

    Raises:
        ConfigError: It is not.
    """
    if number is None and optional:
        return
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        otherwise = ", or None for all" if optional else ""
        raise ConfigError(f"{name} is {number!r}; give a whole number, {least} or more{otherwise}")
