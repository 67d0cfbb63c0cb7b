"""mteb runs our models on a small task made of its own classes."""

from __future__ import annotations

import importlib.util
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_checks import TEXT, Gallery
from lazy import Lazy
from numpy.typing import NDArray
from PIL import Image
from rounding import float16_slack

from edje_qdrant.errors import ConfigError
from edje_qdrant.model import EDJEModel

if find_spec("mteb") is None:
    pytest.skip("needs the extra mteb", allow_module_level=True)

datasets = Lazy("datasets")
mteb = Lazy("mteb")
abstasks = Lazy("mteb.abstasks")
loaders = Lazy("mteb.abstasks.retrieval_dataset_loaders")
task_metadata = Lazy("mteb.abstasks.task_metadata")
protocols = Lazy("mteb.models")
ours = Lazy("edje_qdrant.integrations.mteb")

OTHER = "kites over the lake"
TEXTS = [TEXT, OTHER]
RIGHT = [4, 7]


def gallery_task(
    paths: list[Path], *, category: str = "t2i", **columns: Any
) -> abstasks.AbsTaskRetrieval:
    class GalleryT2I(abstasks.AbsTaskRetrieval):
        metadata = task_metadata.TaskMetadata(
            name="GalleryT2I", description="Images by text.", reference=None,
            dataset={"path": "none", "revision": "1"}, type="Any2AnyRetrieval", category=category,
            modalities=["text", "image"], eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )  # fmt: skip

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            images = datasets.Dataset.from_dict(
                {"id": [f"d{n}" for n in range(len(paths))], "image": [str(path) for path in paths]}
            ).cast_column("image", datasets.Image())
            texts = datasets.Dataset.from_dict({"id": ["q0", "q1"], "text": TEXTS, **columns})
            split = loaders.RetrievalSplitData(
                queries=texts if category == "t2i" else images,
                corpus=images if category == "t2i" else texts,
                relevant_docs={f"q{n}": {f"d{right}": 1} for n, right in enumerate(RIGHT)}
                if category == "t2i"
                else {"d4": {"q0": 1}, "d7": {"q1": 1}},
                top_ranked=None,
            )
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return GalleryT2I()


def scores_of(model: Any, task: abstasks.AbsTaskRetrieval, **options: Any) -> dict[str, float]:
    results = mteb.evaluate(model, task, cache=None, show_progress_bar=False, **options)
    (scores,) = results[0].scores["test"]
    return scores


@pytest.fixture
def logits(gallery: Gallery) -> NDArray[np.float32]:
    tokens = gallery.model.encode_images([Image.open(path) for path in gallery.paths]).tokens
    return np.stack([gallery.model.score(text, tokens) for text in TEXTS])


def reciprocal_rank(scores: NDArray[np.float32]) -> float:
    """Return the mean reciprocal rank of the right images, `(2, 12)`."""
    ranks = [(row > row[right]).sum() + 1 for row, right in zip(scores, RIGHT, strict=True)]
    return float(np.mean([1 / rank if rank <= 10 else 0 for rank in ranks]))


def test_the_models_are_what_mteb_asks_for(tiny_model: EDJEModel) -> None:
    encoder, reranker = ours.EDJEEncoder(tiny_model), ours.EDJEReranker(tiny_model)
    search = ours.EDJETwoStage(tiny_model, num_candidates=5)
    assert isinstance(encoder, protocols.EncoderProtocol)
    assert isinstance(reranker, protocols.CrossEncoderProtocol)
    assert isinstance(search, protocols.SearchProtocol)
    assert not isinstance(search, protocols.EncoderProtocol)
    metas = [model.mteb_model_meta for model in (encoder, reranker, search)]
    assert len({meta.revision for meta in metas}) == 1
    assert all("/" in meta.name and meta.modalities == ["text", "image"] for meta in metas)
    assert metas[2].experiment_kwargs == {"precision": "auto", "num_candidates": 5}
    assert metas[1].is_cross_encoder
    assert metas[0].embed_dim == tiny_model.config.embedding_dim


def test_the_first_stage_is_evaluated(gallery: Gallery) -> None:
    images = gallery.model.encode_images([Image.open(path) for path in gallery.paths])
    cosines = gallery.model.encode_texts(TEXTS) @ images.embeddings.T
    scores = scores_of(ours.EDJEEncoder(gallery.model), gallery_task(gallery.paths))
    assert scores["mrr_at_10"] == pytest.approx(reciprocal_rank(cosines), abs=1e-4)
    back = scores_of(ours.EDJEEncoder(gallery.model), gallery_task(gallery.paths, category="i2t"))
    best = [cosines[n, right] == cosines[:, right].max() for n, right in enumerate(RIGHT)]
    assert back["mrr_at_10"] == pytest.approx(np.mean([1 if each else 0.5 for each in best]))


def test_candidates_of_the_first_stage_are_reranked(
    gallery: Gallery, logits: NDArray[np.float32], tmp_path: Path
) -> None:
    task = gallery_task(gallery.paths)
    scores_of(ours.EDJEEncoder(gallery.model), task, prediction_folder=tmp_path)
    reranking = gallery_task(gallery.paths).convert_to_reranking(tmp_path, top_k=12)
    reranker = ours.EDJEReranker(gallery.model, kept_images=5)
    scores = scores_of(reranker, reranking, encode_kwargs={"batch_size": 4})
    assert scores["mrr_at_10"] == pytest.approx(reciprocal_rank(logits), abs=1e-4)
    assert len(reranker._kept) == 5
    again = gallery_task(gallery.paths).convert_to_reranking(tmp_path, top_k=12)
    both = scores_of(ours.EDJETwoStage(gallery.model), again)
    assert both["mrr_at_10"] == scores["mrr_at_10"]


def test_an_image_is_encoded_once(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores_of(
        ours.EDJEEncoder(gallery.model), gallery_task(gallery.paths), prediction_folder=tmp_path
    )
    encode, seen = gallery.model.encode_pixels, []
    monkeypatch.setattr(
        gallery.model, "encode_pixels", lambda p: (seen.append(len(p)), encode(p))[1]
    )
    task = gallery_task(gallery.paths).convert_to_reranking(tmp_path, top_k=12)
    scores_of(ours.EDJEReranker(gallery.model), task)  # for all its pairs
    assert sum(seen) == 12
    for model in (ours.EDJEEncoder(gallery.model), ours.EDJETwoStage(gallery.model)):
        seen.clear()
        first, second = (scores_of(model, gallery_task(gallery.paths)) for _ in range(2))
        assert sum(seen) == 12  # as for the same images in another language
        assert first == second


def test_both_stages_are_evaluated(gallery: Gallery, logits: NDArray[np.float32]) -> None:
    task = gallery_task(gallery.paths)
    scores = scores_of(ours.EDJETwoStage(gallery.model), task, encode_kwargs={"batch_size": 5})
    assert scores["mrr_at_10"] == pytest.approx(reciprocal_rank(logits), abs=1e-4)


def test_what_was_not_reranked_follows(
    gallery: Gallery, logits: NDArray[np.float32], tmp_path: Path
) -> None:
    model = ours.EDJETwoStage(gallery.model, num_candidates=4)
    task = gallery_task(gallery.paths)
    task.load_data()
    split = task.dataset["default"]["test"]
    given: Any = {
        "task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default",
        "encode_kwargs": {"show_progress_bar": False},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="nothing is indexed"):
        model.search(split["queries"], top_k=12, **given)
    model.index(split["corpus"], **given)
    images = gallery.model.encode_images([Image.open(path) for path in gallery.paths])
    cosines = gallery.model.encode_texts(TEXTS) @ images.embeddings.T
    found = model.search(split["queries"], top_k=12, **given)
    for query in range(2):
        order = np.argsort(-cosines[query], kind="stable")
        ranked = found[f"q{query}"]
        assert {*[*ranked][:4]} == {f"d{row}" for row in order[:4]}
        assert [*ranked][4:] == [f"d{row}" for row in order[4:]]
        values = [*ranked.values()]
        assert values == sorted(values, reverse=True)
        assert len({*values}) == 12
        for row in order[:4]:
            slack = float16_slack(logits)
            assert ranked[f"d{row}"] == pytest.approx(float(logits[query, row]), abs=slack)
    assert all(len(each) == 3 for each in model.search(split["queries"], top_k=3, **given).values())
    with pytest.raises(ConfigError, match="candidate 'd99' of the query 'q0'"):
        model.search(split["queries"], top_k=3, top_ranked={"q0": ["d99"]}, **given)


def test_inputs_that_the_model_does_not_read_are_refused(
    gallery: Gallery, tiny_model: EDJEModel
) -> None:
    task = gallery_task(gallery.paths, category="i2t")
    with pytest.raises(ConfigError, match="documents of GalleryT2I are text"):
        scores_of(ours.EDJETwoStage(tiny_model), task)
    given: Any = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default"}
    image = Image.new("RGB", (40, 40))
    encoder, reranker = ours.EDJEEncoder(tiny_model), ours.EDJEReranker(tiny_model)
    for batch, message in (
        ({"text": ["a dog"], "image": [image]}, "both a text and an image"),
        ({"audio": [1]}, "neither, but audio"),
        ({"image": [3]}, "an image of the task is 3"),
        ({"text": ["!"]}, "at least one word"),
    ):
        with pytest.raises(ConfigError, match=message):
            encoder.encode([batch], **given)
    with pytest.raises(ConfigError, match="both texts"):
        reranker.predict([{"text": ["a"]}], [{"text": ["b"]}], **given)
    with pytest.raises(ConfigError, match="no options truncate_dim"):
        encoder.encode([], truncate_dim=3, **given)
    with pytest.raises(ConfigError, match="precision is 'int8'"):
        encoder.encode([{"text": ["a dog"]}], precision="int8", **given)
    assert encoder.encode([], **given).shape == (0, tiny_model.config.embedding_dim)
    assert reranker.predict([], [], **given).shape == (0,)
    with pytest.raises(ConfigError, match="num_candidates is 0"):
        ours.EDJETwoStage(tiny_model, num_candidates=0)


def test_inquire_is_a_task_of_mteb(
    gallery: Gallery, logits: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {
        "query": [TEXT] * 6 + [OTHER] * 6 + ["snow"],
        "inat24_image_id": [*range(12), 3],  # the last row is an image of two queries
        "relevant": [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0],
        "image": [str(path) for path in [*gallery.paths, gallery.paths[3]]],
    }
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    asked = []
    hub = "edje_qdrant.integrations.mteb.load_dataset"
    monkeypatch.setattr(hub, lambda path, **given: (asked.append((path, given)), rows)[1])
    for model in (ours.EDJETwoStage(gallery.model), ours.EDJEReranker(gallery.model)):
        scores = scores_of(model, ours.InquireRerank())
        precisions = [0.0]  # of the query without a relevant image
        for query, relevant in ((0, [1, 4]), (1, [7])):
            own = logits[query, 6 * query : 6 * query + 6]
            ranks = sorted(int((own > own[r - 6 * query]).sum()) + 1 for r in relevant)
            precisions.append(np.mean([(n + 1) / rank for n, rank in enumerate(ranks)]))
        assert scores["map_at_100"] == pytest.approx(np.mean(precisions), abs=1e-4)
        assert scores["main_score"] == scores["map_at_100"]
    assert asked[0] == ("evendrow/INQUIRE-Rerank", {"revision": "main", "split": "test"})
    monkeypatch.setattr(hub, lambda path, **given: rows.remove_columns("relevant"))
    with pytest.raises(ConfigError, match="has no column relevant"):
        ours.InquireRerank().load_data()


def test_the_commands_of_the_results_page_run(
    gallery: Gallery,
    tiny_folder: Path,
    logits: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("public", root / "benchmarks" / "public.py")
    assert spec is not None
    assert spec.loader is not None
    public = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(public)
    page = (root / "docs" / "results.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python benchmarks/public\.py (.*)$", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == [*public.TASKS]
    for name in public.TASKS:
        monkeypatch.setitem(public.TASKS, name, lambda **_: gallery_task(gallery.paths))
    monkeypatch.chdir(tmp_path)
    for command in commands:
        arguments = [str(tiny_folder) if each == "./edje" else each for each in command.split()]
        public.main([*arguments, "--device", "cpu"])
        report = json.loads((tmp_path / arguments[-1]).read_text(encoding="utf-8"))
        (scores,) = report["scores"]["test"]
        assert scores["mrr_at_10"] == pytest.approx(reciprocal_rank(logits), abs=1e-4)
    assert "hit_rate_at_1" in capsys.readouterr().out
    public.main(["coco", "--model", str(tiny_folder), "--stages", "first", "--device", "cpu"])
    with pytest.raises(SystemExit):
        public.main(["coco", "--model", "demo", "--subsets", "en"])


def test_the_public_tasks_have_the_shape_that_is_run(tiny_model: EDJEModel) -> None:
    for name in ("Flickr30kT2IRetrieval", "MSCOCOT2IRetrieval", "XM3600T2IRetrieval"):
        task = mteb.get_task(name)
        assert task.metadata.category == "t2i"
        assert {*task.metadata.modalities} == {"text", "image"}
