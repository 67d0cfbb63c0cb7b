"""What every plug must do, in words the tests share."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from rounding import float32_slack

from edje_qdrant.model import EDJEModel
from edje_qdrant.search.results import SearchHit
from edje_qdrant.search.retriever import TwoStageRetriever

TEXT = "two dogs on a boat"

T = TypeVar("T")


@dataclass
class Gallery:
    """A collection of twelve images in a folder, not open."""

    folder: Path
    paths: list[Path]
    model: EDJEModel

    def open(self) -> TwoStageRetriever:
        return TwoStageRetriever.open(self.folder, model=self.model)


def check_fields(fields: Mapping[str, Any], hit: SearchHit) -> None:
    assert fields["image_id"] == hit.image_id
    assert fields["path"] == hit.payload["path"]
    assert fields["score"] == pytest.approx(hit.score, abs=float32_slack(hit.score))
    assert fields["retrieval_score"] == pytest.approx(hit.retrieval_score)
    assert (fields["rank"], fields["retrieval_rank"]) == (hit.rank, hit.retrieval_rank)
    assert fields["payload"] == hit.payload
    assert (fields["degraded"], fields["reason"]) == (False, None)
    assert fields["precision"] == "float32"
    assert fields["truncated"] is False


def other_order(items: Sequence[T]) -> list[tuple[int, T]]:
    """Return numbered items in an order that nothing would rank them in."""
    numbered = list(enumerate(items))
    return [*numbered[1::2], *numbered[0::2]]


def check_refused_alike(kind: type[Exception], *calls: Callable[[], Any]) -> None:
    """Check that calls, some of which return a coroutine, raise the same error."""
    refused = []
    for call in calls:
        with pytest.raises(kind) as error:
            _result(call())
        refused.append((type(error.value), str(error.value)))
    assert len({*refused}) == 1, refused


def _result(value: Any) -> Any:
    return asyncio.run(value) if inspect.iscoroutine(value) else value
