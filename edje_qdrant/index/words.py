"""The words of payloads: which fields hold text, and the sparse BM25 vector of each point."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.index.filters.field_paths import nested_path
from edje_qdrant.types import Payload

if TYPE_CHECKING:
    from qdrant_edge import Bm25

__all__ = [
    "LANGUAGES",
    "RRF_CONSTANT",
    "WORDS_KEY",
    "WORDS_VECTOR",
    "WORDS_WEIGHT",
    "ByWords",
    "TextFields",
    "WordVector",
    "check_text_fields",
    "split_name",
]

#: Name of the sparse vector.
WORDS_VECTOR = "words"

#: Key of an index's metadata under which its text fields are recorded.
WORDS_KEY = "words"

#: How much a rank among the words counts, next to the same rank among the embeddings, by default:
#: the best of those tried by benchmarks/hybrid.py.
WORDS_WEIGHT = 0.25

#: The constant of reciprocal ranks, which is the engines' default. A larger one lets an image that
#: both searches find far down come before one that a single search finds first.
RRF_CONSTANT = 2

#: Languages whose endings are cut off and whose most frequent words are left out; "none" does
#: neither.
LANGUAGES = (
    "none", "arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek",
    "hungarian", "italian", "norwegian", "portuguese", "romanian", "russian", "spanish", "swedish",
    "turkish",
)  # fmt: skip

# Version of everything below that decides what words a text has. Another version would have other
# words for the same text, so that stored vectors would have to be made again.
_VERSION = 1

# Words of a usual text: file name, folders and caption. Longer texts, such as those read on an
# image, count less for each word.
_USUAL_LENGTH = 64.0

# Fields whose text is a path or a file's name.
_NAMES = frozenset({"path", "file", "filename", "file_name"})
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}(?=$|#)")  # `#` begins a part of a film

# Scripts that are written without spaces, or in which endings follow a word without one: Thai, Lao,
# Khmer and Burmese, kana, Han and Hangul.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f]+"
)


@dataclass(frozen=True, slots=True)
class WordVector:
    """A sparse vector: one number for each word of a text.

    Attributes:
        indices: Hash of each word.
        values: Weight of each word.
    """

    indices: list[int]
    values: list[float]

    def __len__(self) -> int:
        return len(self.indices)

    def is_like(self, stored: WordVector | None) -> bool:
        """Return whether an engine stores the same words; it may keep them in another order."""
        if stored is None:
            return not self.indices
        mine, other = (dict(zip(w.indices, w.values, strict=True)) for w in (self, stored))
        return mine.keys() == other.keys() and all(
            abs(value - other[index]) <= 1e-3 * value for index, value in mine.items()
        )


@dataclass(frozen=True, slots=True)
class ByWords:
    """The words of `q` queries, to be searched for beside their embeddings.

    Attributes:
        texts: `q` texts; one without words is searched for by its embedding alone.
        weight: How much a rank among the words counts, next to the same rank among the embeddings.
    """

    texts: Sequence[str]
    weight: float = WORDS_WEIGHT


@dataclass(frozen=True, slots=True)
class TextFields:
    """Which payload fields hold text, and how their words are found.

    Attributes:
        fields: Names of payload fields; a dot separates a field of an object from its object.
        language: One of `LANGUAGES`.
        filled: Whether every point has its words.
    """

    fields: tuple[str, ...]
    language: str = "english"
    filled: bool = True

    def as_metadata(self) -> dict[str, Any]:
        """Return what is recorded, as a JSON object."""
        return {
            "version": _VERSION,
            "fields": [*self.fields],
            "language": self.language,
            "filled": self.filled,
        }

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> TextFields | None:
        """Read the text fields of an index from its metadata; None if it has none.

        Raises:
            StoreError: What is recorded is damaged, or of another version.
        """
        recorded = metadata.get(WORDS_KEY)
        if recorded is None:
            return None
        try:
            version, language = recorded["version"], recorded["language"]
            fields, filled = tuple(str(each) for each in recorded["fields"]), recorded["filled"]
        except (KeyError, TypeError) as error:
            raise StoreError(
                f"the text fields recorded with the collection cannot be read ({error!r}); they "
                "are damaged: set them again with `edje-qdrant text-fields`"
            ) from error
        if version != _VERSION or language not in LANGUAGES:
            raise StoreError(
                f"the words of the collection have version {version!r} and language "
                f"{language!r}, and this version of edje-qdrant reads version {_VERSION}; use the "
                "version that wrote them"
            )
        return cls(fields, language, bool(filled))

    def complete(self) -> TextFields:
        """Return the same fields, as those of an index in which every point has its words."""
        return replace(self, filled=True)

    def concern(self, keys: Iterable[str]) -> bool:
        """Return whether one of some top-level payload keys holds text, or an object with text."""
        return not {field.partition(".")[0] for field in self.fields}.isdisjoint(keys)

    def words_of(self, payload: Payload) -> WordVector:
        """Return the words of a payload's text fields; empty without text.

        Texts, and lists of texts, count; numbers and all else do not.
        """
        parts = [
            _spaced(split_name(text) if field.rpartition(".")[2] in _NAMES else text, single=True)
            for field in self.fields
            for text in _texts(payload, field)
        ]
        if not parts:
            return WordVector([], [])
        found = _model(self.language).embed_document("\n".join(parts))
        return WordVector([*found.indices], [*found.values])

    def query(self, text: str) -> WordVector:
        """Return the words of a query; empty for a text without words.

        Names are found as they are written, and by their parts: `DSC00123`, `sunsetBeach`.
        """
        both = f"{_spaced(text, single=False)}\n{_spaced(split_name(text), single=False)}"
        found = _model(self.language).embed_query(both)
        return WordVector([*found.indices], [*found.values])


def check_text_fields(fields: Any, language: Any = "english") -> TextFields | None:
    """Check the names of fields with text; None for none.

    Raises:
        ConfigError: It is not a list of names, a name is given twice or cannot be used, or the
            language is unknown.
    """
    if not isinstance(language, str) or language not in LANGUAGES:
        raise ConfigError(f"text_language is {language!r}; give one of {', '.join(LANGUAGES)}")
    if fields is None:
        return None
    if isinstance(fields, str) or not isinstance(fields, Sequence):
        shown = f"[{fields!r}]" if isinstance(fields, str) else '["caption", "path"]'
        raise ConfigError(f"text_fields is {fields!r}; give a list of field names, such as {shown}")
    if not fields:
        raise ConfigError(
            'text_fields is empty; name payload fields, such as ["caption", "path"], or leave it '
            "out"
        )
    for field in fields:
        nested_path(field, "text field")
    twice = next((field for at, field in enumerate(fields) if field in fields[:at]), None)
    if twice is not None:
        raise ConfigError(f"text_fields names {twice!r} twice; name each field once")
    return TextFields(tuple(fields), language)


def split_name(name: str) -> str:
    """Split a path or a file's name into words, joined by spaces; its suffix is left out.

    Example:
        >>> split_name("Portugal/IMG_2023-lisbon_sunsetBeach.jpg")
        'Portugal IMG 2023 lisbon sunset Beach'
    """
    text = _SUFFIX.sub("", _SCHEME.sub("", name))
    parts: list[str] = []
    for at, sign in enumerate(text):
        if not sign.isalnum():
            # Marks belong to the letter before them, in many scripts.
            parts.append(sign if at and not sign.isascii() and not sign.isspace() else " ")
            continue
        if at and _begins(text[at - 1], sign, text[at + 1 : at + 2]):
            parts.append(" ")
        parts.append(sign)
    return " ".join("".join(parts).split())


def _begins(before: str, sign: str, after: str) -> bool:
    """Return whether a word begins at a sign: `sunset|Beach`, `HDR|Image`, `lisbon|2019`."""
    if sign.isdigit() != before.isdigit():
        return before.isalnum()
    if not sign.isupper():
        return False
    return before.islower() or (before.isupper() and after.islower())


def _texts(payload: Payload, field: str) -> Iterator[str]:
    """Yield the texts in a field of a payload."""
    value: Any = payload
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, str):
            yield each


def _spaced(text: str, *, single: bool) -> str:
    """Write scripts without spaces as pairs of signs, which stand for words, and `_` as a space.

    Words of Chinese, Japanese or Thai cannot be told apart without a dictionary, and one that
    reads a sentence in another way than a query would miss it.

    Args:
        text: The text.
        single: Whether each sign is written by itself, too, so that a query of one sign is found.
    """

    def pairs(found: re.Match[str]) -> str:
        run = found[0]
        two = [run[at : at + 2] for at in range(len(run) - 1)]
        return f" {' '.join([*run, *two] if single or len(run) == 1 else two)} "

    return _UNSPACED.sub(pairs, text.replace("_", " "))


@lru_cache(maxsize=len(LANGUAGES))
def _model(language: str) -> Bm25:
    from qdrant_edge import Bm25, Bm25Config, DisabledStemmer, StopwordsSet, TokenizerType

    neutral: dict[str, Any] = {
        "stopwords": StopwordsSet(set(), set()),
        "stemmer": DisabledStemmer(),
    }
    return Bm25(
        Bm25Config(
            avg_len=_USUAL_LENGTH,
            tokenizer=TokenizerType.Word,
            lowercase=True,
            ascii_folding=True,
            **(neutral if language == "none" else {"language": language}),
        )
    )
