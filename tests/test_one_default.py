"""A search has the same defaults wherever it is asked for."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from edje_qdrant.search.options import DEFAULTS, NUM_CANDIDATES, TOP_K

ROOT = Path(__file__).resolve().parent.parent

#: Where the number is a parameter of its own.
CANDIDATES = [
    "edje_qdrant.search.retriever:TwoStageRetriever.recommend",
    "edje_qdrant.image_to_text.caption_retriever:CaptionRetriever.search",
    "edje_qdrant.evaluation.calibrate:calibrate",
    "edje_qdrant.cli.eval:calibrate",
    "edje_qdrant.cli.plan:plan",
    "edje_qdrant.planning.plan:Workload",
    "edje_qdrant.integrations.mteb:EDJETwoStage",
]

#: Those whose default says something else: that of a published protocol, of the demo's published
#: figures, of a training's validation; and None, which stands for the number or for all.
OTHERS = {
    "evaluation/protocol.py": "a published protocol",
    "demo/run.py": "the demo's published figures",
    "training/recipe.py": "validation while a model is trained",
}


def named(place: str) -> Any:
    module, _, name = place.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("place", CANDIDATES)
def test_candidates_have_one_default(place: str) -> None:
    if "mteb" in place:
        pytest.importorskip("mteb", reason="needs the extra mteb")
    parameters = inspect.signature(named(place)).parameters
    (parameter,) = (parameters[n] for n in ("num_candidates", "candidates") if n in parameters)
    assert parameter.default == NUM_CANDIDATES


def test_the_options_have_it() -> None:
    assert (DEFAULTS["num_candidates"], DEFAULTS["top_k"]) == (NUM_CANDIDATES, TOP_K)


def test_no_other_number_stands_in_the_code() -> None:
    """A new default that is a number of its own is found by its form."""
    given = re.compile(r"\b(?:num_)?candidates(?:: [\w |]+)?(?:\])? = (?:Field\()?([1-9]\d*)")
    found = {
        str(path.relative_to(ROOT / "edje_qdrant")): {int(n) for n in given.findall(text)}
        for path in (ROOT / "edje_qdrant").rglob("*.py")
        if given.search(text := path.read_text(encoding="utf-8"))
    }
    others = {name: numbers for name, numbers in found.items() if numbers != {NUM_CANDIDATES}}
    assert others.keys() <= OTHERS.keys()


def test_mcp_has_it() -> None:
    pytest.importorskip("mcp", reason="needs the extra mcp")
    source = inspect.getsource(importlib.import_module("edje_qdrant.integrations.mcp.server"))
    assert source.count("] = NUM_CANDIDATES,") == 1
    assert source.count("top_k: _TopK = TOP_K") == 2


def test_the_service_has_it() -> None:
    pytest.importorskip("fastapi", reason="needs the extra web")
    from edje_qdrant.web.schemas import RecommendRequest, SearchRequest

    for model in (SearchRequest, RecommendRequest):
        assert model.model_fields["num_candidates"].default is None
        assert model.model_fields["top_k"].default == TOP_K
    assert f"by default {NUM_CANDIDATES}," in str(SearchRequest.model_json_schema())


def test_the_page_has_no_number_of_its_own() -> None:
    for path in (ROOT / "edje_qdrant" / "web" / "static").glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?i)(?<!least_)candidates\w*\s*[:=]\s*[1-9]", text), path


@pytest.mark.parametrize("name", ["docs/cli.md", "docs/search.md"])
def test_the_docs_say_it(name: str) -> None:
    text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
    assert {
        "docs/cli.md": f"First-stage images to rerank; {NUM_CANDIDATES} by default",
        "docs/search.md": f"{TOP_K} hits of {NUM_CANDIDATES} candidates",
    }[name] in text
