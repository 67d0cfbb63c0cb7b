from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

from edje_qdrant.search.options import DEFAULTS, SearchOptions, with_defaults
from edje_qdrant.search.results import SearchHit


def test_every_option_is_documented_and_has_a_default() -> None:
    assert [*DEFAULTS] == [*SearchOptions.__annotations__]
    assert with_defaults({}) == DEFAULTS
    for name in DEFAULTS:
        assert f"\n        {name}: " in (SearchOptions.__doc__ or "")


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected search options: top"):
        with_defaults({"top": 3})  # type: ignore[typeddict-unknown-key]


def test_the_service_takes_every_option_with_the_same_default() -> None:
    pytest.importorskip("fastapi", reason="needs the extra web")
    from edje_qdrant.web.schemas import SearchRequest

    sent = SearchRequest.model_fields
    assert DEFAULTS.keys() <= sent.keys()
    # By default the number of candidates follows from top_k and the service's limit.
    own = {name: sent[name].default for name in DEFAULTS if name != "num_candidates"}
    assert own == {name: value for name, value in DEFAULTS.items() if name != "num_candidates"}


def test_the_service_answers_with_every_field_of_a_hit() -> None:
    pytest.importorskip("fastapi", reason="needs the extra web")
    from edje_qdrant.web.schemas import Hit

    assert {*Hit.model_fields} == {*SearchHit("0", 1.0, 1, 0.5, 1, {}).as_dict()}
    assert {*Hit.model_fields} == {*(field.name for field in fields(SearchHit)), "match"}


def test_the_command_takes_the_options_with_the_same_defaults() -> None:
    from edje_qdrant.cli.search import search

    names = {"filter": "where"}
    parameters = inspect.signature(search).parameters
    for name, default in DEFAULTS.items():
        if name == "fusion_weights":  # from Python and over HTTP only
            continue
        own = parameters[names.get(name, name)].default
        # By default the number of candidates is 100, or top_k if that is more; and top_k is 10, or
        # the number of candidates if that is less.
        assert own == (None if name in ("num_candidates", "top_k") else default), name
