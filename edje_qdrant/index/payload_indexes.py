"""Kinds of payload indexes, and their settings on each engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.filters.field_paths import filter_path

if TYPE_CHECKING:
    import qdrant_edge
    from qdrant_client import models

__all__ = [
    "FACET_KINDS",
    "PayloadKind",
    "check_field",
    "check_indexes",
    "check_kind",
    "edge_schema",
    "kinds_of",
    "qdrant_schema",
]

#: What a field holds. `text` is for words in it, `keyword` for the text as a whole.
PayloadKind: TypeAlias = Literal[
    "keyword", "integer", "float", "bool", "datetime", "geo", "text", "uuid"
]

#: Kinds of indexes by which an engine counts the points of each value.
FACET_KINDS: tuple[PayloadKind, ...] = ("keyword", "integer", "bool")


def check_field(field: str) -> str:
    """Return the path of a field that can be indexed.

    Raises:
        ConfigError: It is not a path, is reserved, or leads into the objects of a list.
    """
    if "[" in filter_path(field, "field"):
        # With such an index, the engine applies `is_empty` in a nested condition to the whole
        # point, and so finds other points than without.
        raise ConfigError(
            f"field {field!r} is in the objects of a list, and an index there would change what "
            "nested conditions find; a plain list needs no brackets: index 'tags', not 'tags[]'"
        )
    return field


def check_kind(kind: str) -> str:
    """Return the kind of an index.

    Raises:
        ConfigError: There is no such kind.
    """
    kinds: tuple[str, ...] = get_args(PayloadKind)
    if kind not in kinds:
        raise ConfigError(f"kind is {kind!r}; give one of {', '.join(kinds)}")
    return kind


def check_indexes(indexes: Mapping[str, PayloadKind]) -> Mapping[str, PayloadKind]:
    """Check field -> kind of indexes to create, and return them.

    Raises:
        ConfigError: It is not such a mapping, or a field or a kind is invalid; names it.
    """
    if not isinstance(indexes, Mapping):
        raise ConfigError(
            f"payload_indexes is a {type(indexes).__name__}; give a dict of field and kind, such "
            "as {'album': 'keyword'}"
        )
    for field, kind in indexes.items():
        check_field(field)
        check_kind(kind)
    return indexes


def edge_schema(kind: str) -> qdrant_edge.PayloadSchemaType | qdrant_edge.TextIndexParams:
    """Return the index settings for Edge."""
    from qdrant_edge import PayloadSchemaType, TextIndexParams, TokenizerType

    if kind == "text":  # without it, phrases are not found
        return TextIndexParams(tokenizer=TokenizerType.Word, lowercase=True, phrase_matching=True)
    schema: PayloadSchemaType = getattr(PayloadSchemaType, kind.capitalize())
    return schema


def qdrant_schema(kind: str) -> models.PayloadSchemaType | models.TextIndexParams:
    """Return the index settings for a server."""
    from qdrant_client import models

    if kind == "text":
        return models.TextIndexParams(
            type=models.TextIndexType.TEXT,
            tokenizer=models.TokenizerType.WORD,
            lowercase=True,
            phrase_matching=True,
        )
    return models.PayloadSchemaType(kind)


def kinds_of(schema: Mapping[str, Any]) -> dict[str, str]:
    """Return field path -> kind from an engine's payload schema."""
    kinds = {path: info.data_type for path, info in schema.items()}
    return {
        path: str(getattr(kind, "value", kind)).rpartition(".")[2].lower()
        for path, kind in sorted(kinds.items())
    }
