"""What the plugs say where the library they plug into is not installed."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from edje_qdrant.errors import MissingExtraError


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
        ("haystack", "haystack", "haystack"),
        ("mcp.server", "mcp", "mcp"),
        ("ray", "ray", "ray"),
        ("mteb", "mteb", "mteb"),
        ("rerankers", "rerankers", "rerankers"),
        ("sentence_transformers", "sentence_transformers", "sentence-transformers"),
    ],
)
def test_without_the_package_the_extra_is_named(
    module: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"edje_qdrant.integrations.{module}"
    for known in [key for key in sys.modules if key == name or key.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'edje-qdrant\[{extra}\]'") as error:
        importlib.import_module(name)
    assert error.value.extra == extra


def test_the_package_itself_loads_nothing() -> None:
    code = (
        "import sys, edje_qdrant.integrations\n"
        "heavy = ('langchain_core', 'llama_index', 'haystack', 'mcp', 'ray', 'rerankers',\n"
        "    'torch', 'sentence_transformers', 'mteb')\n"
        "assert not [name for name in heavy if name in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
