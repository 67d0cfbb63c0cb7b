from __future__ import annotations

import json
import subprocess
import sys

import pytest

import edje_qdrant
from edje_qdrant import errors

#: What users may rely on. A name that joins or leaves belongs into the changelog.
PUBLIC = {
    "AttachedCollection",
    "BusyError",
    "Candidate",
    "CaptionCollection",
    "CaptionHit",
    "CaptionResult",
    "CaptionRetriever",
    "CheckpointError",
    "CollectionExistsError",
    "CollectionLockedError",
    "CollectionNotFoundError",
    "ConfigError",
    "ContractMismatchError",
    "DeviceTokenCache",
    "EDJEConfig",
    "EDJEModel",
    "EDJEModelForIndexing",
    "EDJEModelForRanking",
    "EdjeError",
    "EngineUnavailableError",
    "Explanation",
    "FailedImage",
    "ImageCollection",
    "ImageEncoding",
    "ImageReadError",
    "ImagesDeletedError",
    "ImagesNotFoundError",
    "IngestReport",
    "LabelScore",
    "KeyRefusedError",
    "MissingExtraError",
    "PairReport",
    "QdrantSettings",
    "RankedPoint",
    "RateLimitedError",
    "Reranker",
    "SearchBatcher",
    "SearchHit",
    "SearchResult",
    "StoreError",
    "TextMatch",
    "Timings",
    "TokenContract",
    "TokensCorruptError",
    "TokensNotFoundError",
    "TwoStageRetriever",
    "UnknownOptionError",
    "UnsupportedVersionError",
    "WorkerDiedError",
    "__version__",
    "attach_tokens",
    "classify",
    "classify_batch",
    "draw_explanation",
    "draw_heat",
    "explain_match",
    "detach_tokens",
    "ingest_images",
    "match_texts",
    "score_pairs_file",
}


def in_fresh_python(code: str) -> object:
    """Run code that prints one JSON value, in an interpreter that has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_root_holds_these_names_and_no_others() -> None:
    assert set(edje_qdrant.__all__) == PUBLIC
    assert len(edje_qdrant.__all__) == len(PUBLIC)
    assert set(dir(edje_qdrant)) == PUBLIC


def test_nothing_else_lies_about_in_the_root() -> None:
    code = (
        "import edje_qdrant, json\n"
        "print(json.dumps([n for n in vars(edje_qdrant) if not n.startswith('_')]))"
    )
    assert set(in_fresh_python(code)) == {"annotations", "TYPE_CHECKING", "Any", "version"}  # type: ignore


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_name_is_there(name: str) -> None:
    value = getattr(edje_qdrant, name)
    assert name == "__version__" or value.__name__ == name


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= PUBLIC


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'EdjeModel'"):
        _ = edje_qdrant.EdjeModel
    assert not hasattr(edje_qdrant, "import_module")


def test_importing_the_root_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys, json\n"
        "import edje_qdrant\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(json.dumps(sorted(roots - set(sys.stdlib_module_names))))"
    )
    before = in_fresh_python(code.replace("import edje_qdrant\n", ""))
    assert isinstance(before, list)  # what the environment itself imports at start
    assert in_fresh_python(code) == sorted({*before, "edje_qdrant"})


#: Large parts of torch and other packages that only building a model needs, or nothing here does.
UNNEEDED = (
    "accelerate",
    "datasets",
    "faiss",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "pandas",
    "scipy",
    "sklearn",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.checkpoint",
    "torch.distributed.tensor",
    "torch.onnx",
    "torchvision",
    "transformers",
)


def test_public_names_load_torch_but_nothing_that_only_building_a_model_needs() -> None:
    code = (
        "import sys, json, torch\n"
        f"unneeded = set({UNNEEDED}) - set(sys.modules)\n"  # a torch may import some of them itself
        "from edje_qdrant import *\n"
        "print(json.dumps(sorted(unneeded & set(sys.modules))))"
    )
    assert in_fresh_python(code) == []


@pytest.mark.slow
def test_several_threads_can_load_models_at_once_in_a_new_process() -> None:
    code = (
        "import json, threading, torch\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from edje_qdrant import EDJEModel\n"
        "before = torch.nn.init.normal_\n"
        "together = threading.Barrier(6)\n"
        "def load(_):\n"
        "    together.wait()\n"
        "    return EDJEModel.from_pretrained('demo').encode_texts(['a star']).shape\n"
        "with ThreadPoolExecutor(6) as pool:\n"
        "    found = list(pool.map(load, range(6)))\n"
        "print(json.dumps([found == [(1, 192)] * 6, torch.nn.init.normal_ is before]))"
    )
    assert in_fresh_python(code) == [True, True]


def test_errors_and_contracts_need_neither_torch_nor_an_engine() -> None:
    code = (
        "import sys, json\n"
        "import edje_qdrant\n"
        "edje_qdrant.ImageCollection, edje_qdrant.CaptionCollection\n"
        "edje_qdrant.TokenContract, edje_qdrant.EdjeError\n"
        "print(json.dumps([m for m in ('torch', 'transformers', 'qdrant_client', 'qdrant_edge')"
        " if m in sys.modules]))"
    )
    assert in_fresh_python(code) == []
