"""The options of a search: types, defaults and checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, get_args

from edje_qdrant.checks import check_likeness, check_number
from edje_qdrant.errors import ConfigError, UnknownOptionError
from edje_qdrant.index import Filter, check_group_field
from edje_qdrant.rerank.scorer import OnMissing

__all__ = [
    "DEFAULTS",
    "NUM_CANDIDATES",
    "TOP_K",
    "Fusion",
    "MinScore",
    "OnMissing",
    "SearchOptions",
    "check_milliseconds",
    "fusion_of",
    "with_defaults",
]

#: What ranks the images: the joint encoder alone, with words, or both stages together; "auto" is
#: "words" in a hybrid search, and "rerank" in others.
Fusion = Literal["auto", "rerank", "words", "rrf", "blend"]

#: A logit, or "auto" for the cutoff of the model's calibration.
MinScore = float | Literal["auto"]


class SearchOptions(TypedDict, total=False):
    """Options of `TwoStageRetriever.search`; `DEFAULTS` has their defaults.

    Attributes:
        top_k: Number of hits to return; fewer if the collection holds fewer images. `next` and
            `cursor` of the result return the other candidates. The default is 10, or
            `num_candidates` if fewer are given.
        num_candidates: Number of first-stage images to rerank.
        filter: Search only images whose payload matches: `{"album": "2024", "year": [2023, 2024]}`,
            or a `qdrant_client.models.Filter`.
        hybrid: Search by words, too: an image is a candidate if it looks like the text, or if words
            of the text stand in its text fields (`ImageCollection.create(text_fields=...)`). A
            text without words in it is searched for by looks alone.
        words_weight: How much a rank among the words counts with `hybrid`, next to the same rank
            among the looks, where candidates are chosen; 0.25 by default. With 1, half of them are
            found by words, if there are so many. `fusion_weights` decide about their final order.
        fusion: What ranks the images: `"rerank"` is the score of the joint encoder alone;
            `"words"` adds the BM25 score of the words that were found; `"rrf"` is the reciprocal
            ranks of both stages; `"blend"` the mean of both stages' standardised scores. `"auto"`
            is `"words"` with `hybrid`, and else `"rerank"`.
        fusion_weights: Weights of the first stage (of the words, for `"words"`) and of the joint
            encoder, for all but `"rerank"`.
        group_by: A payload field, such as the name of a video or a book. Of the images that share
            its value only the best is returned, and no group displaces the others.
        collapse_duplicates: Show one of each: of images that are near-duplicates of each other,
            such as copies, crops or a burst, only the best is a hit; its `duplicates` are the ids
            of the others. `top_k` counts what is left. A number from 0 to 1 is the likeness from
            which on images are near-duplicates, instead of the default of 0.96; see `Likeness`.
        budget_ms: Milliseconds for the whole search. Candidates are scored best first until the
            budget ends; the others follow in first-stage order, and the result is `degraded`.
        adaptive: Stop scoring once the remaining candidates are unlikely to matter, by the model's
            calibration; they follow in first-stage order.
        min_score: Leave out hits with a lower logit, and hits without one; `"auto"` is the cutoff
            of the model's calibration.
        on_missing: What to do with candidates whose tokens are missing or damaged. `"error"`
            raises. With `"first_stage"` they keep their first-stage place without a score, and the
            result is `degraded`.
    """

    top_k: int
    num_candidates: int
    filter: Filter | None
    hybrid: bool
    words_weight: float | None
    fusion: Fusion
    fusion_weights: tuple[float, float] | None
    group_by: str | None
    collapse_duplicates: bool | float
    budget_ms: float | None
    adaptive: bool
    min_score: MinScore | None
    on_missing: OnMissing


#: Hits of a search, and first-stage images that it reranks, by default: in the library, the command
#: line, the service, its page and the integrations.
TOP_K, NUM_CANDIDATES = 10, 100

#: The default of every option. `top_k` is lower if fewer candidates are asked for.
DEFAULTS: SearchOptions = {
    "top_k": TOP_K,
    "num_candidates": NUM_CANDIDATES,
    "filter": None,
    "hybrid": False,
    "words_weight": None,
    "fusion": "auto",
    "fusion_weights": None,
    "group_by": None,
    "collapse_duplicates": False,
    "budget_ms": None,
    "adaptive": False,
    "min_score": None,
    "on_missing": "error",
}


# Beyond this weight, all images with some of the words count alike.
_MOST_WEIGHT = 1000


def with_defaults(options: SearchOptions) -> SearchOptions:
    """Check the options of a search and add the defaults of the others.

    Raises:
        ConfigError: An option has an invalid value; names it.
        UnknownOptionError: There is no such option.
    """
    unknown = sorted(options.keys() - DEFAULTS.keys())
    if unknown:
        raise UnknownOptionError(
            f"unexpected search options: {', '.join(unknown)}; there are {', '.join(DEFAULTS)}",
            unknown,
        )
    settings: SearchOptions = {**DEFAULTS, **options}
    num_candidates = settings["num_candidates"]
    check_number("num_candidates", num_candidates)
    if "top_k" not in options:
        settings["top_k"] = min(settings["top_k"], num_candidates)
    top_k = settings["top_k"]
    check_number("top_k", top_k)
    if num_candidates < top_k:
        raise ConfigError(
            f"num_candidates is {num_candidates} and top_k {top_k}; hits are chosen "
            "among the candidates, so raise num_candidates or lower top_k"
        )
    check_choice("on_missing", settings["on_missing"], get_args(OnMissing))
    _check_words(settings)
    check_choice("fusion", settings["fusion"], get_args(Fusion))
    _check_weights(settings["fusion_weights"], fusion_of(settings))
    if settings["fusion"] == "words" and not settings["hybrid"]:
        raise ConfigError('fusion="words" is for hybrid=True, which searches for words')
    _check_group_by(settings["group_by"])
    check_likeness("collapse_duplicates", settings["collapse_duplicates"])
    budget = settings["budget_ms"]
    if budget is not None:
        check_milliseconds("budget_ms", budget)
    if not isinstance(settings["adaptive"], bool):
        raise ConfigError(f"adaptive is {settings['adaptive']!r}; give True or False")
    min_score = settings["min_score"]
    if isinstance(min_score, str):
        check_choice("min_score", min_score, ("auto",))
    elif min_score is not None and not _is_number(min_score):
        raise ConfigError(f'min_score is {min_score!r}; give a logit or "auto"')
    return settings


def fusion_of(settings: SearchOptions) -> Fusion:
    """Return what ranks the images of a search; never `"auto"`."""
    if settings["fusion"] != "auto":
        return settings["fusion"]
    return "words" if settings["hybrid"] else "rerank"


def _check_words(settings: SearchOptions) -> None:
    hybrid, weight = settings["hybrid"], settings["words_weight"]
    if not isinstance(hybrid, bool):
        raise ConfigError(f"hybrid is {hybrid!r}; give True or False")
    if weight is not None and not hybrid:
        raise ConfigError("words_weight is for hybrid=True; leave it out, or search so")
    if weight is not None and not (_is_number(weight) and 0 < weight <= _MOST_WEIGHT):
        raise ConfigError(
            f"words_weight is {weight!r}; give a number above 0, {_MOST_WEIGHT} at most"
        )
    if hybrid and settings["adaptive"]:
        raise ConfigError(
            "adaptive=True stops by how much less the next candidates look like the text, which "
            "says nothing of those found by words; leave it or hybrid=True out, or set budget_ms"
        )


def check_milliseconds(name: str, value: Any) -> None:
    """Raise ConfigError if an option is not a number of milliseconds above 0."""
    if not (_is_number(value) and value > 0):
        raise ConfigError(f"{name} is {value!r}; give milliseconds above 0")


def _check_weights(weights: Any, fusion: Fusion) -> None:
    if weights is None:
        return
    if fusion == "rerank":
        raise ConfigError(
            'fusion_weights are for fusion="words", "rrf" and "blend"; "rerank" weighs nothing'
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


def _check_group_by(field: Any) -> None:
    if field is None:
        return
    if not isinstance(field, str) or not field:
        raise ConfigError(f"group_by is {field!r}; give the name of a payload field")
    check_group_field(field)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Check that an option has one of some values; raises ConfigError."""
    if not isinstance(value, str) or value not in choices:
        either = " or ".join(f'"{choice}"' for choice in choices)
        raise ConfigError(f"{name} is {value!r}; give {either}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
