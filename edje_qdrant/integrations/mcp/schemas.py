"""What the tools return: their output schemas."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from edje_qdrant.model.calibration import MatchWord

__all__ = [
    "CollectionSummary",
    "ExplainedMatch",
    "ExplainedWord",
    "FailedFile",
    "FoundImage",
    "FoundImages",
    "Ingested",
    "RankedImage",
    "RankedImages",
    "ThumbnailOf",
]

_ID = "Id of the image; pass it to the other tools."
_PATH = "Path of the image's file; null if the collection stores none."
_SCORE = "Score of the joint encoder; higher is better, comparable within one query only."
_PROBABILITY = "Probability that text and image match; null if the model is not calibrated."
_MATCH = "The probability in a word: good, possible or weak; null without one."


class FoundImage(BaseModel):
    """One image of a search."""

    rank: int = Field(description="Place in the result, from 1.")
    image_id: str = Field(description=_ID)
    path: str | None = Field(description=_PATH)
    score: float | None = Field(description=f"{_SCORE} Null without a text.")
    probability: float | None = Field(description=_PROBABILITY)
    match: MatchWord | None = Field(description=_MATCH)
    retrieval_score: float = Field(description="Cosine of the first stage, the vector search.")
    retrieval_rank: int = Field(description="Place in the first stage, from 1.")
    fields: dict[str, Any] = Field(description="The payload fields that were asked for.")


class FoundImages(BaseModel):
    """Images of a search, best first."""

    images: list[FoundImage] = Field(description="Best first.")
    candidates: int = Field(description="Number of images that the first stage found.")
    scored: int = Field(description="Number of them that the joint encoder scored.")
    degraded: bool = Field(description="Whether the ranking is less than was asked for.")
    truncated: bool = Field(description="Whether the text was longer than the model reads.")
    reason: str | None = Field(description="Why it is degraded or truncated.")


class RankedImage(BaseModel):
    """One of the images that were ranked."""

    rank: int = Field(description="Place in the ranking, from 1.")
    index: int = Field(description="Place in `image_ids` as given, from 0.")
    image_id: str = Field(description=_ID)
    path: str | None = Field(description=_PATH)
    score: float = Field(description=_SCORE)
    probability: float | None = Field(description=_PROBABILITY)
    match: MatchWord | None = Field(description=_MATCH)


class RankedImages(BaseModel):
    """Given images, ranked by a text, best first."""

    images: list[RankedImage] = Field(description="Best first.")
    truncated: bool = Field(description="Whether the text was longer than the model reads.")
    reason: str | None = Field(description="Why the text was cut, if it was.")


class ExplainedWord(BaseModel):
    """A word of the text, and what the image says about it."""

    word: str = Field(description="The word as written.")
    weight: float = Field(
        description="How much the image supports the word, in nats: about 0 says nothing, below 0 "
        "contradicts it."
    )
    x: float | None = Field(
        description="Where it is seen most: share of the image's width from the left, 0 to 1; null "
        "if nowhere."
    )
    y: float | None = Field(description="Likewise, share of the height from the top.")


class ExplainedMatch(BaseModel):
    """Why a text and an image match, word by word."""

    image_id: str = Field(description=_ID)
    path: str | None = Field(description=_PATH)
    score: float = Field(description=_SCORE)
    probability: float | None = Field(description=_PROBABILITY)
    match: MatchWord | None = Field(description=_MATCH)
    words: list[ExplainedWord] = Field(description="The words of the text, in order.")


class ThumbnailOf(BaseModel):
    """The image that a thumbnail shows; the JPEG itself is a content block of the result."""

    image_id: str = Field(description=_ID)
    path: str | None = Field(description=_PATH)
    nbytes: int = Field(description="Size of the JPEG in bytes.")


class CollectionSummary(BaseModel):
    """What the collection holds, and what the tools can do with it."""

    name: str = Field(description="Name of the collection.")
    images: int = Field(description="Number of images.")
    model: str | None = Field(description="Model that encodes and scores.")
    calibrated: bool = Field(description="Whether results have probabilities.")
    precision: str = Field(description="Precision of the joint encoder.")
    payload_indexes: dict[str, str] = Field(
        description="Payload fields with an index, and its kind: fields that are good to filter by."
    )
    thumbnails: bool = Field(description="Whether image files can be shown.")
    explains: bool = Field(description="Whether matches can be explained.")
    ingest_folders: list[str] = Field(description="Folders whose images may be added.")


class FailedFile(BaseModel):
    """A file that was not added."""

    path: str = Field(description="Path of the file.")
    reason: str = Field(description="Why it was not added.")


class Ingested(BaseModel):
    """What an ingest did."""

    added: int = Field(description="Images added.")
    skipped: int = Field(description="Images that the collection had already.")
    failed: int = Field(description="Files that were not added.")
    failures: list[FailedFile] = Field(description="The first twenty of these.")
    seconds: float = Field(description="Time it took.")
