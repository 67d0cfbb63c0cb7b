"""Extraction of captions from the values of a data set."""

from __future__ import annotations

from typing import Any

__all__ = ["captions_of"]


def captions_of(value: Any) -> tuple[str, ...]:
    """Return the non-blank captions of a text or a list of texts, stripped; ignore other values."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())
