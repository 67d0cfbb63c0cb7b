"""Argument checks used throughout the package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edje_qdrant.errors import ConfigError
from edje_qdrant.text import clean_caption

__all__ = [
    "check_arrays",
    "check_kind",
    "check_likeness",
    "check_list",
    "check_number",
    "check_seconds",
    "check_strings",
    "check_texts",
]


def check_list(name: str, values: Any) -> None:
    """Check that an argument is a list, a tuple, an array or another sequence, and not one text.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(values, str | bytes):
        raise ConfigError(f"{name} is the text {values!r}; give a list, [{values!r}]")
    if isinstance(values, Mapping) or not (
        hasattr(values, "__len__") and hasattr(values, "__getitem__")
    ):
        raise ConfigError(f"{name} is {_shown(values)}; give a list")


def check_strings(name: str, texts: Any) -> None:
    """Check that an argument is a list of texts; what is in them is not looked at.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(texts, str):
        raise ConfigError(f"{name} is the text {texts!r}; give a list of texts")
    check_list(name, texts)
    if not set(map(type, texts)) <= {str}:  # a fast look; subclasses of `str` are looked at below
        for text in texts:
            if not isinstance(text, str):
                raise ConfigError(f"{name} holds {_shown(text)}; give texts")


def check_kind(name: str, value: Any, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Check that an argument is an instance of one of `kinds`, which messages call `wanted`.

    Raises:
        ConfigError: It is not.
    """
    if not isinstance(value, kinds):
        raise ConfigError(f"{name} is {_shown(value)}; give {wanted}")


def check_arrays(name: str, value: Any) -> None:
    """Check that an argument is an array or a tensor.

    Raises:
        ConfigError: It is not.
    """
    if not (hasattr(value, "shape") and hasattr(value, "__getitem__")):
        raise ConfigError(f"{name} is {_shown(value)}; give a numpy array or a tensor")


def _shown(value: Any) -> str:
    """Return a short value as it is written, and the type of any other."""
    short = value is None or isinstance(value, bool | int | float)
    return repr(value) if short else f"a {type(value).__name__}"


def check_texts(what: str, texts: Sequence[str]) -> None:
    """Check that an argument is a list of texts, each with at least one word.

    Raises:
        ConfigError: It is not; names the first text that cannot be used.
    """
    check_strings(what, texts)
    for text in texts:
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


def check_seconds(name: str, seconds: Any) -> None:
    """Check that an argument is a number of seconds, 0 or more.

    Raises:
        ConfigError: It is not.
    """
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not math.isfinite(seconds) or seconds < 0:
        raise ConfigError(f"{name} is {_shown(seconds)}; give seconds, 0 or more")


def check_likeness(name: str, value: Any) -> None:
    """Check an option that is True, False, or a likeness above 0; see `Likeness`.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(value, bool) and not (isinstance(value, int | float) and 0 < value <= 1):
        raise ConfigError(f"{name} is {value!r}; give True, False, or a likeness above 0, up to 1")
