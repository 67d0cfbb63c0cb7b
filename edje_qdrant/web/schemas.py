"""Schemas of requests and answers, from which the OpenAPI description is generated."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    WithJsonSchema,
)

from edje_qdrant.index import WORDS_WEIGHT, Strategy
from edje_qdrant.index.filters.from_json import filter_schema
from edje_qdrant.model.calibration import MatchWord
from edje_qdrant.rerank.scorer import OnMissing
from edje_qdrant.search.options import DEFAULTS, NUM_CANDIDATES, TOP_K, Fusion, MinScore

__all__ = [
    "Answer",
    "CollectionInfo",
    "Count",
    "ErrorBody",
    "ExplainRequest",
    "Explained",
    "FailedUpload",
    "FieldList",
    "FieldValues",
    "FilterCheck",
    "FilterCheckRequest",
    "FilterTrouble",
    "HealthBody",
    "Hit",
    "ImageId",
    "Ingested",
    "KnownField",
    "KnownValue",
    "NextRequest",
    "Picture",
    "PictureList",
    "RecommendRequest",
    "SearchRequest",
    "Suggestions",
    "TypedCount",
    "TypedLimit",
    "TypedTruth",
    "Where",
    "Word",
    "ZipRequest",
]

_ID = "5b0f6d0e-6d0b-5b52-9f0c-2f8f4d6c1a77"
_MOST = 100_000

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_DIGITS = re.compile(r"[0-9]{1,9}")
_ID_SCHEMA = {"type": "string", "format": "uuid", "examples": [_ID]}


def _whole(value: Any) -> Any:
    """Return an integer for 2.0, which is one by JSON Schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _typed_digits(value: Any) -> Any:
    """Return the integer of a form's or an address's text, which has no types of its own."""
    if isinstance(value, str):
        if not _DIGITS.fullmatch(value):
            raise ValueError("give a whole number, in digits")
        return int(value)
    return value


def _typed_truth(value: Any) -> Any:
    """Return the truth value of a form's text."""
    if isinstance(value, str):
        if value not in ("true", "false"):
            raise ValueError("give true or false")
        return value == "true"
    return value


def _canonical_id(text: str) -> str:
    if not _UUID.fullmatch(text):
        raise ValueError("an image's id is a UUID, such as " + _ID)
    return text.lower()


def _filter_value(value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    whole = [_whole(each) for each in values]
    if not all(isinstance(each, bool | int | str) for each in whole):
        raise ValueError("give a text, a whole number, true or false, or a list of these")
    return whole if isinstance(value, list) else whole[0]


def _min_score(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ValueError('give a number, or "auto"')


Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63, json_schema_extra={"format": "int64"})]
Scalar = bool | Int64 | str
FilterDict = dict[
    Annotated[str, StringConstraints(min_length=1)],
    Annotated[Scalar | list[Scalar], BeforeValidator(_filter_value)],
]
QdrantFilter = Annotated[dict[str, Any], WithJsonSchema(filter_schema())]
Where = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=1000)]], Field(max_length=100)
]
Text = Annotated[str, StringConstraints(min_length=1, max_length=_MOST)]
ImageId = Annotated[str, AfterValidator(_canonical_id), WithJsonSchema(_ID_SCHEMA)]
Count = Annotated[int, Field(ge=1, le=_MOST), BeforeValidator(_whole)]
TypedCount = Annotated[int, Field(ge=1, le=_MOST), BeforeValidator(_typed_digits)]
TypedLimit = Annotated[int, Field(ge=1, le=100), BeforeValidator(_typed_digits)]
TypedTruth = Annotated[bool, BeforeValidator(_typed_truth)]
Likeness = Annotated[float, Field(gt=0, le=1)]
CollapseDuplicates = bool | Likeness
Weight = Annotated[float, Field(ge=0)]


class _Model(BaseModel):
    # Strict: true is not 1, and "2" is not 2.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class _Filtered(_Model):
    filter: FilterDict | None = Field(
        None, description="Payload field to value, or to a list of values; all fields must hold."
    )
    qdrant_filter: QdrantFilter | None = Field(
        None,
        description="Instead of `filter`: a filter in Qdrant's own JSON, with must, should, "
        "must_not, ranges and the rest.",
    )
    where: Where = Field(
        [],
        description="Instead of `filter`: conditions as `--where` takes them, such as `album=a`, "
        "`year>=2020`, `taken_at<2024-06-01` and `place~38.72,-9.14,10000`.",
    )


class SearchRequest(_Filtered):
    """Search by text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "a red star above a blue ring", "top_k": 5, "num_candidates": 50},
                {"text": "a dog in the snow", "filter": {"album": "winter"}, "budget_ms": 200},
            ]
        }
    )

    text: Text = Field(description="Description of the image.")
    top_k: Count = Field(
        TOP_K, description="Hits to return; if it is absent, num_candidates where that is less."
    )
    num_candidates: Count | None = Field(
        None,
        description="First-stage images to rerank; by default "
        f"{NUM_CANDIDATES}, or top_k if that is larger.",
    )
    hybrid: bool = Field(
        False,
        description="Search by words, too: images are found if they look like the text, or if its "
        "words stand in the collection's text fields.",
    )
    words_weight: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None,
        description="How much a rank among the words counts with `hybrid`, next to the same rank "
        f"among the looks; {WORDS_WEIGHT:g} by default.",
    )
    fusion: Fusion = Field(
        DEFAULTS["fusion"],
        description="Ranking by the joint encoder alone, with the words that were found added, or "
        "by both stages together; auto is `words` with `hybrid`, and else `rerank`.",
    )
    # Not strict itself, as JSON has lists and no tuples; its numbers are.
    fusion_weights: Annotated[tuple[Weight, Weight], Strict(False)] | None = Field(
        None,
        description="Weights of the first stage and of the joint encoder, for rrf and blend; of "
        "the words and of the joint encoder, for words.",
    )
    group_by: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        None,
        description="A payload field; of the images that share its value, only the best is "
        "returned.",
    )
    collapse_duplicates: CollapseDuplicates = Field(
        False,
        description="Return one of each: of near-duplicates, such as copies, crops or a burst, the "
        "best is a hit, and its `duplicates` are the ids of the others. A number is the likeness "
        "from which on images are near-duplicates, from 0 to 1.",
    )
    budget_ms: Annotated[float, Field(gt=0, le=600_000)] | None = Field(
        None, description="Time budget of the search in milliseconds, including waiting."
    )
    adaptive: bool = Field(False, description="Stop scoring once the rest is unlikely to matter.")
    min_score: Annotated[MinScore, BeforeValidator(_min_score)] | None = Field(
        None, description="Leave out hits with a lower logit; auto: below the calibrated cutoff."
    )
    on_missing: OnMissing = Field(
        DEFAULTS["on_missing"],
        description="For candidates whose tokens are missing or damaged: an error, or their "
        "first-stage place.",
    )
    first_stage: bool = Field(
        False, description="Also return the ranking of the first stage alone."
    )


class NextRequest(_Model):
    """Request the next page of an earlier answer."""

    cursor: str = Field(
        min_length=1,
        pattern="^[A-Za-z0-9_-]+$",
        description="The `cursor` of that answer.",
    )
    top_k: Count = Field(TOP_K, description="Hits of the page.")


class RecommendRequest(_Filtered):
    """Search for images like some and unlike others."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"liked": [_ID], "text": "a red star", "top_k": 5}]}
    )

    liked: list[ImageId] = Field(
        max_length=100, description="Ids of images to find similar ones to."
    )
    disliked: list[ImageId] = Field(
        [], max_length=100, description="Ids of images to avoid similar ones to."
    )
    text: Text | None = Field(None, description="Text that ranks the images found.")
    top_k: Count = TOP_K
    num_candidates: Count | None = None
    strategy: Strategy = "average_vector"
    on_missing: OnMissing = DEFAULTS["on_missing"]
    collapse_duplicates: CollapseDuplicates = Field(
        False, description="Return one of each near-duplicate, as in `/v1/search`."
    )


class ZipRequest(_Model):
    """Request the files of images."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image_ids": [_ID]}]})

    image_ids: list[ImageId] = Field(min_length=1, max_length=_MOST)


class FilterCheckRequest(_Model):
    """Check the conditions of a filter."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"where": ["yaer>=2020"]}]})

    where: Where = Field(description="Conditions as in a search.")


class ExplainRequest(_Model):
    """Explain where in an image a text is seen."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"image_id": _ID, "text": "a red star"}]}
    )

    image_id: ImageId
    text: Annotated[str, StringConstraints(min_length=1, max_length=300)]


class Hit(BaseModel):
    """Image found by a search."""

    image_id: ImageId
    rank: int = Field(description="Rank from 1, continued over pages.")
    score: float | None = Field(description="The joint encoder's logit; null if not scored.")
    probability: float | None = Field(
        description="Probability that text and image match, if calibrated."
    )
    match: MatchWord | None = Field(
        None, description="The probability in a word: good, possible or weak."
    )
    retrieval_score: float = Field(description="The first stage's cosine.")
    retrieval_rank: int = Field(description="Rank in the first stage, from 1.")
    fusion_score: float | None = None
    group: Any = None
    duplicates: list[ImageId] = Field(
        [],
        description="Ids of the near-duplicates that this image stands for, best first; with "
        "`collapse_duplicates`.",
    )
    payload: dict[str, Any] = Field(
        description="Stored payload; `path` is relative to the image folder."
    )


class Answer(BaseModel):
    """Hits, best first."""

    query: str
    hits: list[Hit]
    first_stage: list[Hit] | None = Field(
        None, description="Hits of the first stage alone, if requested."
    )
    timings_ms: dict[str, float] = Field(
        description="Milliseconds by stage: queue, encode, retrieve, fetch, rerank, total.",
        examples=[
            {"queue": 1.9, "encode": 2.1, "retrieve": 0.6, "fetch": 0.4, "rerank": 9, "total": 14}
        ],
    )
    candidates: int
    scored: int
    degraded: bool = Field(description="Whether some candidates were not scored as requested.")
    truncated: bool = Field(False, description="Whether the text is longer than the model reads.")
    reason: str | None = Field(None, description="Why it is degraded or truncated, if so.")
    precision: str | None = Field(
        None, description="Precision of the joint encoder; null if it ranked nothing."
    )
    cursor: str | None = Field(description="For /v1/search/next; null past the last hit.")


class FailedUpload(BaseModel):
    """File that was not added, with the reason."""

    name: str
    reason: str


class Ingested(BaseModel):
    """Result of an ingest."""

    added: int
    updated: int = Field(
        description="Images that the collection already held, and that have other fields now."
    )
    skipped: int = Field(description="Images that the collection already held, left as they were.")
    failed: list[FailedUpload]
    image_ids: list[ImageId] = Field(
        description="Ids of the uploaded images that the collection now holds, in order."
    )
    since: str | None = Field(
        description="The earliest `modified_at` of the added images, as RFC 3339; null if none was."
    )


class Picture(BaseModel):
    """Image of the collection."""

    image_id: ImageId
    payload: dict[str, Any]
    file: str | None = Field(description="Address of the image file; null if it is not served.")
    thumbnail: str | None
    source: str | None = Field(
        None,
        description="Address of the film at the frame's time, or of the document at the page.",
    )


class PictureList(BaseModel):
    """A page of the collection's images."""

    pictures: list[Picture]
    order: Literal["newest", "id"] = Field(
        description="By `taken_at`, else `modified_at`, latest first and those without last; or by "
        "id, where the index cannot order by these."
    )
    reason: str | None = Field(None, description="Why they are in order of id, if so.")
    cursor: str | None = Field(description="For the next page; null on the last.")


class CollectionInfo(BaseModel):
    """Collection, model and limits of the service."""

    name: str
    resolved_name: str = Field(description="The collection's own name, if `name` is an alias.")
    pictures: int
    model: str | None
    calibrated: bool
    precision: str = Field(description="Precision of the joint encoder.")
    ingest: bool
    explain: bool
    max_top_k: int
    max_candidates: int
    max_text: int
    max_upload_bytes: int
    max_files: int = Field(description="Images in one ingest request.")
    max_zip_files: int = Field(description="Images in one zip file.")
    num_candidates: int = Field(description="Candidates of a search that names none.")
    text_fields: list[str] = Field(
        description="Payload fields whose words `hybrid` searches; empty if it cannot be used."
    )
    model_note: str | None = Field(description="What the model cannot do, if that is known.")
    version: str


class KnownField(BaseModel):
    """Payload field, as seen in a sample of the images."""

    name: str = Field(description="As conditions take it; fields of an object after a dot.")
    kinds: list[str] = Field(
        description="What it holds: keyword (text), integer, float, bool, datetime, geo."
    )
    images: int = Field(description="Images of the sample that have it.")


class FieldList(BaseModel):
    """Payload fields of a sample of the images."""

    fields: list[KnownField]
    images: int = Field(description="Images of the sample.")
    complete: bool = Field(description="Whether the sample is the whole collection.")


class KnownValue(BaseModel):
    """Value of a payload field."""

    value: bool | int | str
    images: int


class FieldValues(BaseModel):
    """Most frequent values of a payload field."""

    field: str
    values: list[KnownValue] = Field(description="The most frequent first.")
    counted: bool = Field(description="Whether all images were counted, not only a sample.")


class FilterTrouble(BaseModel):
    """Condition that cannot be used, or by which nothing can be found."""

    where: str
    kind: Literal["unknown", "type", "refused"] = Field(
        description="unknown: no image has the field; type: it holds values of another type; "
        "refused: it cannot be read, or needs a payload index."
    )
    message: str
    nearest: str | None = Field(None, description="The field with the most similar name.")


class FilterCheck(BaseModel):
    """What is wrong with the conditions of a filter; empty if each may find something."""

    problems: list[FilterTrouble]


class Suggestions(BaseModel):
    """Texts to search for; empty if the payloads hold none."""

    texts: list[str]


class Word(BaseModel):
    """Word of a text, with the regions of the image that support it."""

    word: str
    weight: float = Field(description="How much more likely the image makes the word, in nats.")
    heat: list[list[float]] = Field(description="Rows of cells that sum to 1, or are all 0.")


class Explained(BaseModel):
    """Explanation of a match."""

    image_id: ImageId
    text: str
    score: float
    heat: list[list[float]]
    words: list[Word]
    area: tuple[float, float, float, float] = Field(
        description="Area that the maps cover: left, top, right, bottom, as shares of the image."
    )


class HealthBody(BaseModel):
    """State of the service."""

    status: str = Field(examples=["ok"])


class ErrorBody(BaseModel):
    """Error."""

    error: str = Field(examples=["ConfigError"], description="Name of the error, for programs.")
    message: str = Field(examples=["top_k is 0; give a whole number, 1 or more"])
    detail: str = Field(description="The message again, where other services' clients read it.")
    request_id: str = Field(examples=["0f3c9a4e6d2b4f0d8a1c"])
