"""Paths of payload fields in the syntax of the engines."""

from __future__ import annotations

import re

from edje_qdrant.errors import ConfigError

__all__ = [
    "TOKENS_KEY",
    "TOKEN_BYTES",
    "filter_path",
    "key_path",
    "nested_path",
    "require_integer",
    "require_text",
]

#: The payload's reserved key. `_edje.tokens`, where there is one, is never returned by `nearest`.
TOKENS_KEY = "_edje"

#: Path of the token bytes in a payload.
TOKEN_BYTES = f"{TOKENS_KEY}.tokens"

# Names that need no quotes; in quotes, a name may have all characters but these two.
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_UNQUOTABLE = re.compile(r'["\\]')

# A path in Qdrant's syntax: names, plain or in quotes, with list indexes, joined by dots.
_NAME = r'(?:[A-Za-z0-9_-]+|"[^"\\]+")(?:\[\d{0,18}\])*'
_PATH = re.compile(rf"{_NAME}(?:\.{_NAME})*")


def key_path(key: str, what: str) -> str:
    """Return the path of a top-level key; its dots and brackets are part of its name.

    Args:
        key: As in the payload.
        what: What the key is, for messages.

    Raises:
        ConfigError: The engines have no syntax for it.
    """
    if not isinstance(key, str):
        raise ConfigError(f"{what} {key!r} is a {type(key).__name__}; give the field's name")
    if _UNQUOTABLE.search(key):
        raise ConfigError(
            f"{what} {key!r} holds a quotation mark or a backslash, which Qdrant cannot look up; "
            "store the field under another name"
        )
    return key if _PLAIN.fullmatch(key) else f'"{key}"'


def nested_path(key: str, what: str) -> str:
    """Return the path of a field; its dots separate a nested field from its object.

    Args:
        key: Names joined by dots.
        what: What the key is, for messages.

    Raises:
        ConfigError: It is the reserved key, contains an empty name or a bracket, or the engines
            have no syntax for it.
    """
    key_path(key, what)
    names = key.split(".")
    if names[0] == TOKENS_KEY:
        raise ConfigError(
            f"{what} {key!r} is reserved for what concerns tokens; use a field of your own"
        )
    if not all(names):
        raise ConfigError(
            f"{what} {key!r} has an empty name in it; write a field as 'name', and one of a "
            "nested object as 'object.name'"
        )
    if "[" in key or "]" in key:
        raise ConfigError(
            f"{what} {key!r} has a bracket in it, but objects in a list cannot be looked into; "
            "store their values in a list of text or whole numbers, and name that"
        )
    return ".".join(key_path(name, what) for name in names)


def filter_path(key: str, what: str, *, reserved: bool = True) -> str:
    """Check a path in Qdrant's syntax: `object.name`, `list[].name` or `"a name"`.

    Args:
        key: The path.
        what: What it is, for messages.
        reserved: Whether it starts at the payload's top, where one key is reserved.

    Raises:
        ConfigError: It is not a path, or starts with the reserved key.
    """
    require_text(key, what)
    if not _PATH.fullmatch(key):
        raise ConfigError(
            f"{what} {key!r} is no path that Qdrant reads; join names by dots, write [] for each "
            "element of a list, and put a name of other signs than letters, digits, _ and - in "
            "double quotes"
        )
    first = re.split(r"[.\[]", key)[0] if key[0] != '"' else key.split('"')[1]
    if reserved and first == TOKENS_KEY:
        raise ConfigError(
            f"{what} {key!r} is reserved for what concerns tokens; use a field of your own"
        )
    return key


def require_integer(value: int, where: str) -> None:
    """Check that a whole number fits into 64 bits, which is what the engines compare.

    Raises:
        ConfigError: It does not.
    """
    if not -(2**63) <= value < 2**63:
        # Python does not write numbers of thousands of digits.
        shown = value if value.bit_length() < 256 else f"a number of {value.bit_length()} bits"
        raise ConfigError(
            f"{where} asks for {shown}, which has more than 64 bits; store such numbers as text"
        )


def require_text(value: str, where: str) -> None:
    """Check that a text can be encoded as UTF-8; a file name's undecodable bytes cannot.

    Raises:
        ConfigError: It cannot.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{where} is {value!r}; give a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where} asks for {value!r}, which is no text: {error}") from error
