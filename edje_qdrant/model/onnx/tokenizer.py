"""A self-contained tokenizer file: text clean-up, truncation and padding included."""

from __future__ import annotations

import json
import sys
from html.entities import html5, name2codepoint
from typing import Any

from ftfy.chardata import (
    CONTROL_CHARS,
    DOUBLE_QUOTE_RE,
    HTML_ENTITIES,
    LIGATURES,
    SINGLE_QUOTE_RE,
    WIDTH_MAP,
)

from edje_qdrant.errors import ConfigError

__all__ = ["portable_tokenizer", "tokenizer_data", "tokenizer_file"]


def portable_tokenizer(tokenizer: Any, max_words: int) -> bytes:
    """Return a `tokenizer.json` that turns raw texts into the joint encoder's input.

    Its normalizer does what `clean_caption` does, except the repair of mojibake and of HTML
    entities that HTML 4 has no name for.

    Args:
        tokenizer: The joint encoder's tokenizer.
        max_words: Word pieces including `[CLS]` and `[SEP]`; longer texts are cut.

    Raises:
        ConfigError: The tokenizer is not a fast one (of the library `tokenizers`).
    """
    data = tokenizer_data(tokenizer, max_words, "BatchLongest", "Right")
    normalizer = data["normalizer"]
    steps = [*_cleaning(), *([normalizer] if normalizer else [])]
    data["normalizer"] = {"type": "Sequence", "normalizers": steps}
    # Special tokens are added by id; "[SEP]" within a text is an ordinary word.
    data["added_tokens"] = []
    return tokenizer_file(data)


def tokenizer_data(
    tokenizer: Any, length: int, padding: str | dict[str, int], side: str
) -> dict[str, Any]:
    """Return the content of a tokenizer's `tokenizer.json`, which truncates and pads by itself.

    Args:
        tokenizer: A tokenizer of transformers'.
        length: Ids of a text, at most.
        padding: `"BatchLongest"`, or `{"Fixed": length}`.
        side: Where to pad: `"Right"` or `"Left"`.

    Raises:
        ConfigError: The tokenizer is not a fast one (of the library `tokenizers`).
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"a tokenizer of type {type(tokenizer).__name__} has no tokenizer.json; use a fast one"
        )
    data: dict[str, Any] = json.loads(backend.to_str())
    data["truncation"] = {
        "direction": "Right",
        "max_length": length,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    data["padding"] = {
        "strategy": padding,
        "direction": side,
        "pad_to_multiple_of": None,
        "pad_id": tokenizer.pad_token_id,
        "pad_type_id": 0,
        "pad_token": tokenizer.pad_token,
    }
    return data


def tokenizer_file(data: dict[str, Any]) -> bytes:
    """Return the bytes of a `tokenizer.json`."""
    return (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode()


def _cleaning() -> list[dict[str, Any]]:
    """Return the steps of `clean_caption` as normalizers.

    Each character has a step of its own where it is replaced by another, which is what the format
    can express; all of them together take 0.1 ms per text.
    """
    quotes = SINGLE_QUOTE_RE.pattern[1:-1] + DOUBLE_QUOTE_RE.pattern[1:-1]
    # Ranges of ASCII punctuation but the underscore, with the escapes that every dialect of regular
    # expressions allows.
    removed = r"!-/:-@\[-^`{-~" + quotes
    spaces = "".join(filter(str.isspace, map(chr, range(sys.maxunicode + 1))))
    return [
        *_entities(),
        *(_replace(old, new) for old, new in _characters().items()),
        _replace_all("\x1b\\[[0-9;]*[a-zA-Z]", ""),  # colours of a terminal
        _replace_all(f"[{''.join(map(chr, CONTROL_CHARS))}]", ""),
        {"type": "NFC"},
        _replace("_", " "),
        _replace_all(f"[{removed}]", ""),
        # The library lower-cases each character alone, but a Greek sigma depends on its place.
        _replace_all(r"(?<=[\p{Lu}\p{Ll}\p{Lt}])Σ(?![\p{Lu}\p{Ll}\p{Lt}])", "ς"),
        {"type": "Lowercase"},
        _replace_all(f"[{spaces}]+", " "),
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ]


def _entities() -> list[dict[str, Any]]:
    """Return steps that replace the entities of HTML 4 by their characters."""
    names: dict[str, list[str]] = {html5[f"{name};"]: [] for name in [*name2codepoint, "apos"]}
    # Old names are also read without a semicolon; ftfy knows names in capitals too.
    given = {**html5, **{name.removeprefix("&"): new for name, new in HTML_ENTITIES.items()}}
    for name, character in given.items():
        if character in names:
            names[character].append(name)
    steps = []
    for character, known in names.items():
        code = ord(character)
        numbers = [f"#0*{code};", f"#[xX]0*{code:x};", f"#[xX]0*{code:X};"]
        # The longest name first, as some names start with others.
        either = "|".join([*sorted(known, key=len, reverse=True), *numbers])
        # An ampersand may start the next entity: `&amp;eacute;` is read twice.
        repeated = f"&(?:{either})+" if character == "&" else f"&(?:{either})"
        longest = max(map(len, known))
        steps.append((character != "&", -longest, _replace_all(repeated, character)))
    return [step for *_, step in sorted(steps, key=lambda each: each[:2])]


def _characters() -> dict[str, str]:
    """Return character -> replacement: Windows' control characters, ligatures, wide letters."""
    windows = {byte: bytes([byte]).decode("windows-1252", "ignore") for byte in range(0x80, 0xA0)}
    replaced = {**{code: new for code, new in windows.items() if new}, **LIGATURES, **WIDTH_MAP}
    return {chr(code): new for code, new in replaced.items()}


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _replace_all(pattern: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": new}
