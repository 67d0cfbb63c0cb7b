"""What a search can be asked for, checked before anything is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from edje_qdrant.checks import check_number
from edje_qdrant.errors import ConfigError
from edje_qdrant.index import Filter

__all__ = [
    "Fusion",
    "MinScore",
    "OnMissing",
    "SearchOptions",
    "SearchSettings",
]

#: What becomes of candidates whose tokens are missing or damaged.
OnMissing = Literal["error", "first_stage"]

#: What ranks images: the joint encoder alone, or both stages put together.
Fusion = Literal["rerank", "rrf", "blend"]

#: A logit, or the cutoff of the model's calibration.
MinScore = float | Literal["auto"]


class SearchOptions(TypedDict, total=False):
    """Name the options of a search; see `TwoStageRetriever.search`."""

    top_k: int
    num_candidates: int
    filter: Filter | None
    fusion: Fusion
    fusion_weights: tuple[float, float] | None
    group_by: str | None
    budget_ms: float | None
    adaptive: bool
    min_score: MinScore | None
    on_missing: OnMissing


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """Hold the options of a search; see `TwoStageRetriever.search`.

    Raises:
        ConfigError: One cannot be used; names it.
    """

    top_k: int = 10
    num_candidates: int = 100
    filter: Filter | None = None
    fusion: Fusion = "rerank"
    fusion_weights: tuple[float, float] | None = None
    group_by: str | None = None
    budget_ms: float | None = None
    adaptive: bool = False
    min_score: MinScore | None = None
    on_missing: OnMissing = "error"

    def __post_init__(self) -> None:
        check_number("top_k", self.top_k)
        check_number("num_candidates", self.num_candidates)
        if self.num_candidates < self.top_k:
            raise ConfigError(
                f"num_candidates is {self.num_candidates} and top_k {self.top_k}; hits are chosen "
                "among the candidates, so raise num_candidates or lower top_k"
            )
        _check_choice("on_missing", self.on_missing, get_args(OnMissing))
        _check_choice("fusion", self.fusion, get_args(Fusion))
        if self.fusion_weights is not None:
            self._check_weights()
        if self.group_by is not None and (not isinstance(self.group_by, str) or not self.group_by):
            raise ConfigError(f"group_by is {self.group_by!r}; give the name of a payload field")
        if self.budget_ms is not None and not (_is_number(self.budget_ms) and self.budget_ms > 0):
            raise ConfigError(f"budget_ms is {self.budget_ms!r}; give milliseconds above 0")
        if not isinstance(self.adaptive, bool):
            raise ConfigError(f"adaptive is {self.adaptive!r}; give True or False")
        if isinstance(self.min_score, str):
            _check_choice("min_score", self.min_score, ("auto",))
        elif self.min_score is not None and not _is_number(self.min_score):
            raise ConfigError(f'min_score is {self.min_score!r}; give a logit or "auto"')

    def _check_weights(self) -> None:
        weights = self.fusion_weights
        if self.fusion == "rerank":
            raise ConfigError(
                'fusion_weights are for fusion="rrf" and fusion="blend"; "rerank" weighs nothing'
            )
        if (
            not isinstance(weights, tuple | list)
            or len(weights) != 2
            or not all(_is_number(weight) and weight >= 0 for weight in weights)
            or not any(weights)
        ):
            raise ConfigError(
                f"fusion_weights is {weights!r}; give two numbers of 0 or more, for the first "
                "stage and for the joint encoder, one of them above 0"
            )


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        either = " or ".join(f'"{choice}"' for choice in choices)
        raise ConfigError(f"{name} is {value!r}; give {either}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
