"""Schemas of requests and answers in the shapes that rerank and embedding clients use.

`/v1/rerank` reads the requests of Jina, Cohere (v1 and v2), vLLM, SGLang, Voyage and Text
Embeddings Inference; `/v1/embeddings` those of OpenAI, Jina and vLLM. Unlike in the service's own
routes, unknown fields are ignored: each client sends options that only its own service has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from edje_qdrant.web.schemas import Count, ImageId

__all__ = [
    "Embedded",
    "Embedding",
    "EmbeddingsRequest",
    "Item",
    "ModelInfo",
    "ModelList",
    "RerankRequest",
    "RerankResult",
    "Reranked",
    "RerankedDocument",
    "TextRank",
    "Usage",
    "sends_image",
]

_ID = "5b0f6d0e-6d0b-5b52-9f0c-2f8f4d6c1a77"
_MOST = 10_000
_FORM = (
    'a text, {"text": ...}, {"image": URL, data URI or base64}, or {"content": [...]} with one '
    "part of type text or image_url"
)


@dataclass(frozen=True, slots=True)
class Item:
    """A query, a document or an input: one text, or one image.

    Attributes:
        text: The text; None for an image.
        image: Address, data URI or base64 of the image, or an id of the collection; None for a
            text.
    """

    text: str | None = None
    image: str | None = None


def sends_image(text: str) -> bool:
    """Return whether a text is a data URI with an image."""
    return text[:11].lower() == "data:image/"


def _read_item(value: Any) -> Item:
    """Read an item in any of the accepted shapes.

    Raises:
        ValueError: The shape is none of them, or holds no text and no image, or several.
    """
    found = _parts(value)
    if len(found) > 1 and any(part.image for part in found) and any(part.text for part in found):
        raise ValueError("it holds a text and an image, and the model reads one of them; send one")
    if len(found) > 1:
        raise ValueError(f"it holds {len(found)} parts, and the model reads one; send one")
    if not found:
        raise ValueError("it is empty; give " + _FORM)
    return found[0]


def _parts(value: Any) -> list[Item]:
    """Return all texts and images in a value, without empty texts that stand beside an image."""
    if isinstance(value, str):
        return [Item(image=value) if sends_image(value) else Item(text=value)] if value else []
    if isinstance(value, list):
        return [part for each in value for part in _parts(each)]
    if not isinstance(value, Mapping):
        raise ValueError("give " + _FORM)
    kind = value.get("type")
    if kind is not None and kind not in _PART_TYPES:
        raise ValueError(f"a part of type {str(kind)[:40]!r} cannot be read; give {_FORM}")
    found: list[Item] = []
    text, content = value.get("text"), value.get("content")
    if text is not None:
        if not isinstance(text, str):
            raise ValueError("its text is not a string; give " + _FORM)
        found += _parts(text)
    if content is not None:
        if not isinstance(content, str | list):
            raise ValueError("its content is not a string or a list of parts; give " + _FORM)
        found += _parts(content)
    for name in ("image", "image_url"):
        image = value.get(name)
        if isinstance(image, Mapping):
            image = image.get("url")
        if image is not None:
            if not isinstance(image, str) or not image:
                raise ValueError(f"its {name} is not a string; give {_FORM}")
            found.append(Item(image=image))
    return found


_PART_TYPES = ("text", "image", "image_url", "input_text", "input_image", "document", "message")

_URL_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "object",
            "properties": {"url": {"type": "string", "minLength": 1}},
            "required": ["url"],
        },
    ],
    "description": "An address, a data URI, or base64.",
}
_PART_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": [*_PART_TYPES]},
        "text": {"type": "string"},
        "image": _URL_SCHEMA,
        "image_url": _URL_SCHEMA,
    },
}


def _item_schema(**text: Any) -> dict[str, Any]:
    return {
        "anyOf": [
            {"type": "string", "minLength": 1, **text},
            {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "image": _URL_SCHEMA,
                    "image_url": _URL_SCHEMA,
                    "content": {
                        "anyOf": [
                            {"type": "string"},
                            {"type": "array", "items": _PART_SCHEMA},
                        ]
                    },
                },
            },
            {"type": "array", "items": _PART_SCHEMA},
        ]
    }


def _false(value: Any) -> Any:
    return False if value is None else value


AnyItem: TypeAlias = Annotated[
    Item, PlainValidator(_read_item), WithJsonSchema(_item_schema(examples=[_ID]))
]
Query: TypeAlias = Annotated[
    Item, PlainValidator(_read_item), WithJsonSchema(_item_schema(maxLength=100_000))
]
Flag: TypeAlias = Annotated[bool, BeforeValidator(_false)]
ModelName: TypeAlias = Annotated[str, Field(max_length=200)]


class _ClientModel(BaseModel):
    # Strict types, as in the service's own routes; fields of other services are ignored.
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)


class RerankRequest(_ClientModel):
    """Rank images by a text, or texts by an image, in the form of rerank services."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "edje", "query": "a red star", "documents": [_ID], "top_n": 1},
                {
                    "query": "a red star",
                    "documents": [
                        {"image": "https://images.example.com/star.jpg"},
                        {
                            "content": [
                                {
                                    "type": "image_url",
                                    "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="},
                                }
                            ]
                        },
                    ],
                },
                {"query": "a red star", "texts": [_ID], "raw_scores": False},
            ]
        }
    )

    model: ModelName | None = Field(
        None, description="Accepted for compatibility; the service has one model."
    )
    query: Query = Field(
        description="Text to rank images by, or an image to rank texts by: a string, or an object "
        "as in `documents`."
    )
    documents: list[AnyItem] | None = Field(
        None,
        min_length=1,
        max_length=_MOST,
        description="Images: ids or paths of the collection, data URIs, or objects with `image`, "
        "or with `content` of one part of type `image_url`. For a query that is an image: texts.",
    )
    texts: list[AnyItem] | None = Field(
        None,
        min_length=1,
        max_length=_MOST,
        description="Instead of `documents`, in the form of Text Embeddings Inference; the answer "
        "has its form, too.",
    )
    top_n: Count | None = Field(None, description="Results to return; all by default.")
    top_k: Count | None = Field(None, description="The same, as Voyage names it.")
    return_documents: Flag = Field(False, description="Return the documents with the scores.")
    return_text: Flag = Field(False, description="With `texts`: return them with the scores.")
    raw_scores: Flag = Field(False, description="With `texts`: return logits.")

    @model_validator(mode="after")
    def _one_list(self) -> RerankRequest:
        if (self.documents is None) == (self.texts is None):
            raise ValueError("give documents, or texts in the form of Text Embeddings Inference")
        return self


class RerankedDocument(BaseModel):
    """Document of a request, without the bytes of an image."""

    text: str = Field(description="The text that was sent; empty for an image.")
    id: ImageId | None = Field(
        None,
        description="Id of the image: the one in the collection, or the one it would have there.",
    )
    image: str | None = Field(None, description="The address that was sent, if it was one.")


class RerankResult(BaseModel):
    """Rank and score of one document."""

    index: int = Field(description="Position in `documents`, from 0.")
    relevance_score: float = Field(
        description="Between 0 and 1: the calibrated probability, or the logit's sigmoid."
    )
    score: float = Field(description="The logit.")
    document: RerankedDocument | None = None


class Usage(BaseModel):
    """What the model read."""

    prompt_tokens: int = Field(description="Word pieces and image tokens read.")
    total_tokens: int


class ApiVersion(BaseModel):
    """Version of the shape of an answer."""

    version: Literal["2"] = "2"


class RerankMeta(BaseModel):
    """What Cohere's clients read beside the results."""

    api_version: ApiVersion = ApiVersion()


class Reranked(BaseModel):
    """Documents by relevance, best first."""

    id: str = Field(description="The request's id.")
    object: Literal["list"] = "list"
    model: str
    results: list[RerankResult]
    usage: Usage
    meta: RerankMeta = RerankMeta()
    truncated: bool = Field(False, description="Whether a text is longer than the model reads.")
    reason: str | None = Field(None, description="Why, if one is truncated.")


class TextRank(BaseModel):
    """Rank and score of one text, in the form of Text Embeddings Inference."""

    index: int = Field(description="Position in `texts`, from 0.")
    score: float
    text: str | None = None


class EmbeddingsRequest(_ClientModel):
    """Encode texts and images for the first stage, in the form of OpenAI's service."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "edje", "input": "a red star"},
                {"input": ["a red star", {"image": "data:image/png;base64,iVBORw0KGgo="}]},
            ]
        }
    )

    model: ModelName | None = Field(
        None, description="Accepted for compatibility; the service has one model."
    )
    input: Annotated[
        list[Item] | None,
        PlainValidator(lambda value: _read_inputs(value)),
        WithJsonSchema(
            {
                "anyOf": [
                    *_item_schema()["anyOf"][:2],
                    {"type": "array", "minItems": 1, "items": {"anyOf": _item_schema()["anyOf"]}},
                    {"type": "null"},
                ]
            }
        ),
    ] = Field(None, description="A text, or a list of texts and images as in /v1/rerank.")
    messages: Annotated[
        list[Item] | None,
        PlainValidator(lambda value: _read_messages(value)),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "array", "minItems": 1, "maxItems": 1, "items": _PART_SCHEMA},
                    {"type": "null"},
                ]
            }
        ),
    ] = Field(None, description="Instead of `input`, as vLLM has it: one message.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: little-endian float32; float by default."
    )
    dimensions: Count | None = Field(None, description="The model's own width, or nothing.")

    @model_validator(mode="after")
    def _one_source(self) -> EmbeddingsRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give input, or messages with one message")
        return self

    @property
    def items(self) -> list[Item]:
        """Return what is to be encoded, in order."""
        return self.input or self.messages or []


def _read_inputs(value: Any) -> list[Item] | None:
    if value is None:
        return None
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, int) or _is_numbers(each) for each in values):
        raise ValueError(
            "it holds token ids, which belong to another model; send texts (in LangChain's "
            "OpenAIEmbeddings, check_embedding_ctx_length=False does so)"
        )
    if not values:
        raise ValueError("it is empty; give a text, or a list of texts and images")
    if len(values) > _MOST:
        raise ValueError(f"it holds {len(values)} inputs; send at most {_MOST} at a time")
    return [_read_numbered(at, each) for at, each in enumerate(values)]


def _read_numbered(at: int, value: Any) -> Item:
    try:
        return _read_item(value)
    except ValueError as error:
        raise ValueError(f"input {at}: {error}") from error


def _read_messages(value: Any) -> list[Item] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], Mapping):
        raise ValueError('give one message, such as {"role": "user", "content": [...]}')
    return [_read_item({"content": value[0].get("content")})]


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, int | float) for each in value)


class Embedding(BaseModel):
    """Embedding of one input."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(description="Position in `input`, from 0.")
    embedding: list[float] | str = Field(
        description="`(d,)` of unit length, in the first stage's space; or its base64."
    )


class Embedded(BaseModel):
    """Embeddings, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage
    truncated: bool = Field(False, description="Whether a text is longer than the model reads.")
    reason: str | None = Field(None, description="Why, if one is truncated.")


class ModelInfo(BaseModel):
    """The service's model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(0, description="0: the time is not recorded.")
    owned_by: str = "edje-qdrant"


class ModelList(BaseModel):
    """The models of the service: one."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]
