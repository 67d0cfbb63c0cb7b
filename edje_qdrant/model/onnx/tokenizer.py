"""A self-contained tokenizer file: text clean-up, truncation and padding included."""

from __future__ import annotations

import json
from typing import Any

from edje_qdrant.errors import ConfigError

__all__ = ["portable_tokenizer"]

# The steps of `clean_caption`, except the repair of broken encodings and HTML entities.
_CLEANING: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
    {"type": "Replace", "pattern": {"Regex": r"[!-/:-@\[-^`{-~]"}, "content": ""},
    {"type": "Lowercase"},
]


def portable_tokenizer(tokenizer: Any, max_words: int) -> bytes:
    """Return a `tokenizer.json` that turns raw texts into the joint encoder's input.

    Args:
        tokenizer: The joint encoder's tokenizer.
        max_words: Word pieces including `[CLS]` and `[SEP]`; longer texts are cut.

    Raises:
        ConfigError: The tokenizer is not a fast one (of the library `tokenizers`).
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"a tokenizer of type {type(tokenizer).__name__} has no tokenizer.json; use a fast one"
        )
    data = json.loads(backend.to_str())
    normalizer = data["normalizer"]
    steps = [*_CLEANING, *([normalizer] if normalizer else [])]
    data["normalizer"] = {"type": "Sequence", "normalizers": steps}
    # Special tokens are added by id; "[SEP]" within a text is an ordinary word.
    data["added_tokens"] = []
    data["truncation"] = {
        "direction": "Right",
        "max_length": max_words,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    data["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": tokenizer.pad_token_id,
        "pad_type_id": 0,
        "pad_token": tokenizer.pad_token,
    }
    return (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode()
