"""Measure a search without torch: size of an installation, imports, memory, and the ranking.

    python benchmarks/without_torch.py [--images 300] [--fastembed] [--out without_torch.json]

The bundled model is exported and a collection of drawn scenes is made here, where torch is. A new
virtual environment then gets `edje-qdrant[onnx]` alone, with the versions of constraints.txt, and
searches the collection in new processes, as this environment does with the model itself. Times are
medians of five processes that run in turn. The ranking of both is compared: it must be the same.

With `--fastembed` the new environment gets `edje-qdrant[fastembed]`, and fastembed's own class for
SigLIP2 embeds the texts too, by a small model with random weights in the layout of its ONNX file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
from demo_world import conditions

from edje_qdrant import EDJEModel, ImageCollection, ingest_images
from edje_qdrant.demo.captions import describe
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.model.onnx.export import export_onnx
from edje_qdrant.model.onnx.text_encoder import export_text_encoder

ROOT = Path(__file__).resolve().parent.parent
RUNS = 5

_SEARCH = """
import json, re, sys, time
started = time.perf_counter()
from edje_qdrant import TwoStageRetriever
imported = time.perf_counter()
index, model, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with TwoStageRetriever.open(index, model=model) as retriever:
    opened = time.perf_counter()
    results = [retriever.search(text) for text in texts]
    assert not any(result.degraded for result in results), results[0].reason
    once = time.perf_counter()
    for text in texts:
        retriever.search(text)
    ended = time.perf_counter()
# Unlike getrusage's, this figure does not include the process that started this one.
memory = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps({
    "torch": "torch" in sys.modules,
    "import_s": imported - started,
    "open_s": opened - imported,
    "search_ms": 1000 * (ended - once) / len(texts),
    "memory_mb": memory / 1024,
    "hits": [[hit.image_id for hit in result] for result in results],
    "scores": [[hit.score for hit in result] for result in results],
}))
"""

_FASTEMBED = """
import sys
from pathlib import Path
import numpy as np
from edje_qdrant.model.onnx.fastembed import FastEmbedTextEncoder
folder, texts = Path(sys.argv[1]), sys.argv[2:]
encoder = FastEmbedTextEncoder(specific_model_path=str(folder), threads=1)
expected = np.load(folder / "expected.npy")
found = encoder.encode_texts(texts)
assert "torch" not in sys.modules
print(float(np.abs(found - expected).max()))
"""


def main() -> None:
    """Measure, and print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--fastembed", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edje-without-torch-") as name:
        report = {**conditions(), **_measured(Path(name), options.images, options.fastembed)}
    print(json.dumps(report, indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _measured(folder: Path, images: int, fastembed: bool) -> dict[str, Any]:
    model = EDJEModel.from_pretrained("demo", device="cpu")
    scenes = [*draw_scenes("test", 0, images)]
    (folder / "images").mkdir()
    for number, scene in enumerate(scenes):
        draw(scene).save(folder / "images" / f"{number}.png")
    index, exported = folder / "index", folder / "exported"
    exported.mkdir()
    with ImageCollection.create(index, "images", model.contract()) as collection:
        ingest_images(folder / "images", collection, model, progress=False)
    export_onnx(model, exported / "joint.onnx")
    export_text_encoder(model, exported / "text_encoder.onnx")
    random = np.random.default_rng(0)
    texts = [describe(scene, random).text for scene in scenes[:20]]
    python = _environment(folder / "venv", "fastembed" if fastembed else "onnx")
    runs: dict[str, list[dict[str, Any]]] = {"without torch": [], "with torch": []}
    for _ in range(RUNS):
        for kind, program, used in (
            ("without torch", python, str(exported)),
            ("with torch", Path(sys.executable), "demo"),
        ):
            runs[kind].append(_search(program, [str(index), used, json.dumps(texts)]))
    ours, theirs = runs["without torch"][0], runs["with torch"][0]
    if ours["torch"]:
        raise SystemExit("torch was imported")
    if ours["hits"] != theirs["hits"]:
        raise SystemExit("the rankings differ")
    scores = np.abs(np.array(ours["scores"]) - np.array(theirs["scores"]))
    report: dict[str, Any] = {
        "images": images,
        "texts": len(texts),
        "largest difference of a score": float(scores.max()),
        "installed_mb": _size(folder / "venv"),
        "rows": [
            {"what": what, **{kind: _median(runs[kind], what) for kind in runs}}
            for what in ("import_s", "open_s", "search_ms", "memory_mb")
        ],
    }
    if fastembed:
        report["fastembed's largest difference"] = _fastembed(folder, python)
    return report


def _environment(folder: Path, extra: str) -> Path:
    """Make a virtual environment with this package and one extra; return its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    # fastembed takes no huggingface-hub as new as the pinned one.
    pins = [] if extra == "fastembed" else ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, *pins, f"{ROOT}[{extra}]"], check=True)
    found = subprocess.run([str(python), "-c", "import torch"], capture_output=True, check=False)
    if found.returncode == 0:
        raise SystemExit("the extra installs torch")
    return python


def _search(python: Path, arguments: list[str]) -> dict[str, Any]:
    run = subprocess.run(
        [str(python), "-c", _SEARCH, *arguments], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(run.stderr)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def _median(runs: list[dict[str, Any]], what: str) -> float:
    return round(statistics.median(run[what] for run in runs), 3)


def _size(folder: Path) -> int:
    """Return the megabytes of an environment's packages."""
    sites = [path for path in folder.rglob("site-packages") if path.is_dir()]
    files = (file for site in sites for file in site.rglob("*"))
    return round(sum(file.stat().st_size for file in files if file.is_file()) / 1e6)


def _fastembed(folder: Path, python: Path) -> float:
    """Embed texts by fastembed's class for SigLIP2; return the largest difference to torch's."""
    import torch
    from transformers import SiglipTextConfig, SiglipTextModel

    model = EDJEModel.from_pretrained("demo", device="cpu")
    encoder: Any = model.encoder
    tokenizer = encoder.tokenizer
    torch.manual_seed(0)
    tower = SiglipTextModel(
        SiglipTextConfig(
            hidden_size=768,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=len(tokenizer),
            max_position_embeddings=32,
            projection_size=768,
            bos_token_id=2,
            eos_token_id=3,
        )
    ).eval()
    place = folder / "siglip2"
    (place / "onnx").mkdir(parents=True)

    class Form(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            output = self.tower(input_ids=input_ids)
            return output.last_hidden_state, output.pooler_output

    texts = ["two dogs in the snow", "a red circle"]
    ids = encoder.tokenize(texts)
    program = torch.onnx.export(
        Form().eval(),
        (ids,),
        input_names=["input_ids"],
        output_names=["last_hidden_state", "pooler_output"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    (place / "onnx" / "text_model.onnx").write_bytes(program.model_proto.SerializeToString())
    tokenizer.backend_tokenizer.save(str(place / "tokenizer.json"))
    settings = {
        "config.json": {"pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 32},
        "tokenizer_config.json": {"model_max_length": 32, "pad_token": tokenizer.pad_token},
        "special_tokens_map.json": {"pad_token": tokenizer.pad_token},
    }
    for name, content in settings.items():
        (place / name).write_text(json.dumps(content), encoding="utf-8")
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(tower(input_ids=ids).pooler_output, dim=-1)
    np.save(place / "expected.npy", expected.numpy())
    run = subprocess.run(
        [str(python), "-c", _FASTEMBED, str(place), *texts],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise SystemExit(run.stderr)
    difference = float(run.stdout.splitlines()[-1])
    if difference > 1e-4:
        raise SystemExit(f"fastembed's embeddings differ by {difference}")
    return difference


if __name__ == "__main__":
    main()
