"""Models for mteb's retrieval tasks over images, and INQUIRE-Rerank as a task of mteb's.

mteb runs three kinds of model: `EDJEEncoder` is the first stage alone, `EDJEReranker` scores the
candidates that a task or another model's predictions name, and `EDJETwoStage` is both stages.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from edje_qdrant.checks import check_kind, check_number
from edje_qdrant.encoders.weights import hash_weights
from edje_qdrant.errors import ConfigError, MissingExtraError
from edje_qdrant.images import ignore_decoder_warnings
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.inference.precision import Precision
from edje_qdrant.model.queries import encode_all, read_pixels
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.search.options import NUM_CANDIDATES
from edje_qdrant.types import ImageEncoding

try:
    from datasets import Dataset, load_dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
    from mteb.types import PromptType
except ImportError as error:
    raise MissingExtraError("mteb", "mteb") from error

__all__ = ["EDJEEncoder", "EDJEReranker", "EDJETwoStage", "InquireRerank"]

# Images whose encodings a model keeps: 1 GB at 64 tokens of 384 numbers.
_KEPT_IMAGES = 20_000


class _Model:
    """What the three models share: the model, and its description for mteb.

    mteb keeps results by the model's name and revision; the revision is a hash of the weights, so
    that results of a model that was trained on are not taken for its own.

    Encodings are kept by the pixels of an image: mteb passes an image once for each of its pairs,
    and the images of a task in several languages once for each of these.
    """

    mteb_model_meta: Any
    _keeps_tokens = True

    def _load(
        self,
        model: EDJEModel | str | Path,
        device: str | torch.device | None,
        kind: str,
        kept_images: int,
        **settings: Any,
    ) -> None:
        check_number("kept_images", kept_images)
        if not isinstance(model, EDJEModel):
            check_kind("model", model, (str, Path), "a model, or what names one")
            model = EDJEModel.from_pretrained(model, device=device)
        self._model = model
        self._kept_images = kept_images
        self._kept: OrderedDict[bytes, ImageEncoding] = OrderedDict()
        name = model.name_or_path or "model"
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": name if name.count("/") == 1 else f"edje-qdrant/{Path(name).name}",
                "revision": hash_weights(model.state_dict()),
                "languages": None,
                "n_parameters": sum(each.numel() for each in model.parameters()),
                "embed_dim": model.config.embedding_dim,
                "max_tokens": model.joint_encoder.max_caption_length,
                "similarity_fn_name": ScoringFunction.COSINE,
                "framework": ["PyTorch"],
                "modalities": ["text", "image"],
                "model_type": [kind],
                "use_instructions": False,
                # Part of the name that results are kept by.
                "experiment_kwargs": settings or None,
            }
        )

    def _encode(self, images: Sequence[Any]) -> ImageEncoding:
        """Encode one batch of Pillow images: `(n, d)` embeddings, `(n, m, d_text)` tokens."""
        keys = [_content_key(_checked(image)) for image in images]
        missing = {key: i for key, i in zip(keys, images, strict=True) if key not in self._kept}
        if missing:
            with warnings.catch_warnings():
                ignore_decoder_warnings()
                pixels = [read_pixels(self._model, image) for image in missing.values()]
            encoded = self._model.encode_pixels(torch.cat(pixels))
            for row, key in enumerate(missing):
                rows = slice(row, row + 1 if self._keeps_tokens else row)
                # Copies, as a view would keep the whole batch.
                self._kept[key] = ImageEncoding(
                    encoded.embeddings[row : row + 1].copy(), encoded.tokens[rows].copy()
                )
        kept = [self._kept[key] for key in keys]
        for key in keys:
            self._kept.move_to_end(key)
        while len(self._kept) > self._kept_images:
            self._kept.popitem(last=False)
        return ImageEncoding(
            np.concatenate([each.embeddings for each in kept]),
            np.concatenate([each.tokens for each in kept]),
        )


class EDJEEncoder(_Model, AbsEncoder):
    """The first stage as mteb's encoder of texts and images.

    Args:
        model_name: A model, or the argument of `EDJEModel.from_pretrained`.
        revision: Ignored, as mteb passes it; the weights' hash stands for it.
        device: The device for a model that is loaded here; by default CUDA if available.
        kept_images: Number of images whose embeddings are kept.

    Raises:
        CheckpointError: The model cannot be loaded.
        ConfigError: `kept_images` is below 1.

    Examples:
        >>> import mteb
        >>> task = mteb.get_task("Flickr30kT2IRetrieval")
        >>> mteb.evaluate(EDJEEncoder("./edje"), task)
    """

    _keeps_tokens = False

    def __init__(
        self,
        model_name: EDJEModel | str | Path,
        revision: str | None = None,  # noqa: ARG002 - mteb's signature
        *,
        device: str | torch.device | None = None,
        kept_images: int = _KEPT_IMAGES,
    ) -> None:
        self._load(model_name, device, "dense", kept_images)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,  # noqa: ARG002 - mteb's signature; there are no prompts
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: Any = None,  # noqa: ARG002
        **options: Any,
    ) -> NDArray[np.float32]:
        """Encode texts or images.

        Args:
            inputs: Batches, each with `text` or `image`.
            task_metadata: Not used.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: Not used.
            options: mteb's `batch_size`, which the batches have already, and `show_progress_bar`.

        Returns:
            `(n, d)` embeddings of unit length.

        Raises:
            ConfigError: An input has both a text and an image or neither, a text has no word, or
                there is another option.
            ImageReadError: An image cannot be read.
        """
        parts = [np.empty((0, self._model.config.embedding_dim), np.float32)]
        for kind, values in _batches(inputs, options, "embeddings"):
            encode = self._model.encode_texts if kind == "text" else self._embeddings
            parts.append(encode(values))
        return np.concatenate(parts)

    def _embeddings(self, images: Sequence[Any]) -> NDArray[np.float32]:
        return self._encode(images).embeddings


class EDJEReranker(_Model):
    """The joint encoder as mteb's cross-encoder: for tasks that name candidates.

    For both stages of one model, `EDJETwoStage` is faster: mteb decodes an image for each of its
    pairs here, and once there.

    Args:
        model_name: A model, or the argument of `EDJEModel.from_pretrained`.
        revision: Ignored, as for `EDJEEncoder`.
        device: The device for a model that is loaded here; by default CUDA if available.
        precision: Precision of the joint encoder, see `Reranker`.
        kept_images: Number of images whose encodings are kept.

    Raises:
        CheckpointError: The model cannot be loaded.
        ConfigError: An argument is invalid.

    Examples:
        >>> mteb.evaluate(EDJEEncoder("./edje"), task, prediction_folder="first")
        >>> mteb.evaluate(EDJEReranker("./edje"), task.convert_to_reranking("first", top_k=100))
    """

    def __init__(
        self,
        model_name: EDJEModel | str | Path,
        revision: str | None = None,  # noqa: ARG002 - mteb's signature
        device: str | torch.device | None = None,
        *,
        precision: Precision = "auto",
        kept_images: int = _KEPT_IMAGES,
    ) -> None:
        self._load(model_name, device, "cross-encoder", kept_images, precision=precision)
        self._reranker = Reranker(self._model, precision=precision)

    def predict(
        self,
        inputs1: Iterable[Mapping[str, Any]],
        inputs2: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,  # noqa: ARG002 - mteb's signature; there are no prompts
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: Any = None,  # noqa: ARG002
        **options: Any,
    ) -> NDArray[np.float32]:
        """Score pairs of a text and an image.

        Args:
            inputs1: Batches of the queries of `n` pairs, each with `text` or `image`.
            inputs2: Batches of the documents; `image` where the queries have `text`.
            task_metadata: Not used.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: Not used.
            options: As for `EDJEEncoder.encode`.

        Returns:
            `(n,)` logits, higher is better.

        Raises:
            ConfigError: A pair is not a text and an image, a text has no word, or there is an
                unknown option.
            ImageReadError: An image cannot be read.
        """
        parts = [np.empty(0, np.float32)]
        queries = _batches(inputs1, options, "pairs")
        documents = _batches(inputs2, {}, None)
        for (first, left), (second, right) in zip(queries, documents, strict=True):
            if first == second:
                raise ConfigError(
                    f"the queries and the documents of this task are both {first}s; the model "
                    "scores a text against an image, so run EDJEEncoder on it"
                )
            texts, images = (left, right) if first == "text" else (right, left)
            parts.append(self._reranker.score_pairs(texts, self._encode(images).tokens))
        return np.concatenate(parts)


class EDJETwoStage(_Model):
    """Both stages as mteb's search over images: nearest embeddings, reranked.

    The images of a task are encoded once, and their tokens kept in memory (49 kB an image at 64
    tokens of 384 numbers). Images that were not reranked follow in the order of the first stage,
    with scores below the lowest logit. For a task that names candidates, these are reranked.

    Args:
        model_name: A model, or the argument of `EDJEModel.from_pretrained`.
        revision: Ignored, as for `EDJEEncoder`.
        device: The device for a model that is loaded here; by default CUDA if available.
        precision: Precision of the joint encoder, see `Reranker`.
        num_candidates: Images of the first stage that are reranked.
        kept_images: Number of images whose encodings are kept for the next language of a task.

    Raises:
        CheckpointError: The model cannot be loaded.
        ConfigError: An argument is invalid.

    Examples:
        >>> mteb.evaluate(EDJETwoStage("./edje", num_candidates=100), task)
    """

    def __init__(
        self,
        model_name: EDJEModel | str | Path,
        revision: str | None = None,  # noqa: ARG002 - mteb's signature
        *,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        num_candidates: int = NUM_CANDIDATES,
        kept_images: int = _KEPT_IMAGES,
    ) -> None:
        check_number("num_candidates", num_candidates)
        settings = {"precision": precision, "num_candidates": num_candidates}
        self._load(model_name, device, "cross-encoder", kept_images, **settings)
        self._reranker = Reranker(self._model, precision=precision)
        self._num_candidates = num_candidates
        self._ids: list[str] = []
        self._images: ImageEncoding | None = None

    def index(
        self,
        corpus: Any,
        *,
        task_metadata: Any,
        hf_split: str,  # noqa: ARG002 - mteb's signature
        hf_subset: str,  # noqa: ARG002
        encode_kwargs: Mapping[str, Any],
        num_proc: int | None = None,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Encode the images of a task.

        Args:
            corpus: mteb's data set, with `id` and `image`.
            task_metadata: Of the task.
            hf_split: Not used.
            hf_subset: Not used.
            encode_kwargs: `batch_size` and `show_progress_bar`.
            num_proc: Not used.

        Raises:
            ConfigError: The documents are not images, or there is an unknown option.
            ImageReadError: An image cannot be read.
        """
        _require_modality(task_metadata, PromptType.document, "image")
        batches = _batches(_rows_of(corpus, "image", encode_kwargs), encode_kwargs, "images")
        parts = [self._encode(images) for _kind, images in batches]
        c = self._model.config
        self._ids = [str(each) for each in corpus["id"]]
        self._images = ImageEncoding(
            np.concatenate([np.empty((0, c.embedding_dim), np.float32)]
                           + [part.embeddings for part in parts]),
            np.concatenate([np.empty((0, c.num_tokens, c.token_dim), np.float16)]
                           + [part.tokens for part in parts]),
        )  # fmt: skip

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        hf_split: str,  # noqa: ARG002 - mteb's signature
        hf_subset: str,  # noqa: ARG002
        top_k: int,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        num_proc: int | None = None,  # noqa: ARG002
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """Rank the images of a task for each query.

        Args:
            queries: mteb's data set, with `id` and `text`.
            task_metadata: Of the task.
            hf_split: Not used.
            hf_subset: Not used.
            top_k: Images to return for a query.
            encode_kwargs: `batch_size` and `show_progress_bar`.
            top_ranked: Query id -> ids of its candidates; by default those of the first stage.
            num_proc: Not used.

        Returns:
            Query id -> image id -> score.

        Raises:
            ConfigError: Nothing is indexed, a query is not a text or has no word, a candidate is
                unknown, or there is an unknown option.
        """
        if self._images is None:
            raise ConfigError("nothing is indexed; mteb calls index before search")
        _require_modality(task_metadata, PromptType.query, "text")
        texts: list[str] = []
        for _kind, values in _batches(
            _rows_of(queries, "text", encode_kwargs), encode_kwargs, None
        ):
            texts += values
        if "instruction" in queries.column_names:  # as mteb does for encoders
            instructions: list[str | None] = list(queries["instruction"])
            texts = [
                f"{text} {more}" if more else text
                for text, more in zip(texts, instructions, strict=True)
            ]
        embeddings = encode_all(self._model, texts)  # (q, d)
        row_of = {image_id: row for row, image_id in enumerate(self._ids)}
        hide = not encode_kwargs.get("show_progress_bar", True)
        found: dict[str, dict[str, float]] = {}
        names = [str(each) for each in queries["id"]]
        for name, text, embedding in zip(
            tqdm(names, "queries", disable=hide), texts, embeddings, strict=True
        ):
            if top_ranked is None:
                similarities = self._images.embeddings @ embedding  # (n,)
                rows = np.argsort(-similarities, kind="stable")[: max(top_k, self._num_candidates)]
                count = self._num_candidates
            else:
                rows = _rows(row_of, top_ranked.get(name, ()), name)
                count = len(rows)
            found[name] = self._ranked(text, rows, count, top_k)
        return found

    def _ranked(
        self, text: str, rows: NDArray[np.intp], count: int, top_k: int
    ) -> dict[str, float]:
        """Rerank the first `count` rows; the others follow them."""
        assert self._images is not None
        candidates, others = rows[:count], rows[count:]
        logits = self._reranker.score(text, self._images.tokens[candidates])
        order = np.argsort(-logits, kind="stable")
        scores = {self._ids[candidates[place]]: float(logits[place]) for place in order}
        lowest = min(scores.values(), default=0.0)
        for place, row in enumerate(others, start=1):
            scores[self._ids[row]] = lowest - place
        return dict([*scores.items()][:top_k])


class InquireRerank(AbsTaskRetrieval):
    """INQUIRE-Rerank as a task of mteb's: 100 candidates for each query.

    `map_at_100` is the benchmark's average precision, in which a query's relevant images are those
    among its candidates; a query that has none counts as 0. Source: arXiv 2411.02537.

    Examples:
        >>> mteb.evaluate(EDJETwoStage("./edje"), InquireRerank())
    """

    metadata = TaskMetadata(
        name="INQUIRERerank",
        description="Rerank 100 photographs of nature for each question of an expert.",
        reference="https://inquire-benchmark.github.io/",
        dataset={"path": "evendrow/INQUIRE-Rerank", "revision": "main"},
        type="Any2AnyReranking",
        category="t2i",
        modalities=["text", "image"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="map_at_100",
    )

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:  # noqa: ARG002
        """Load the data set from the hub, or from its cache; mteb calls this.

        Raises:
            ConfigError: The data set lacks a column.
        """
        if getattr(self, "data_loaded", False):
            return
        splits = {split: _inquire_split(self.metadata.dataset, split) for split in self.eval_splits}
        self.dataset: Any = {"default": splits}
        self.data_loaded = True


def _inquire_split(place: Mapping[str, Any], split: str) -> Any:
    """Return one split as mteb keeps it: queries, images, judgements and candidates."""
    rows: Any = load_dataset(**place, split=split)
    missing = {"query", "inat24_image_id", "relevant", "image"} - {*rows.column_names}
    if missing:
        raise ConfigError(
            f"{place['path']} has no column {', '.join(sorted(missing))}; it has "
            f"{', '.join(rows.column_names)}, so it has changed since this was written"
        )
    texts, images = list(rows["query"]), [str(each) for each in rows["inat24_image_id"]]
    query_of = {text: f"q{number}" for number, text in enumerate(dict.fromkeys(texts))}
    first_row = {image: row for row, image in reversed([*enumerate(images)])}
    relevant: dict[str, dict[str, int]] = {}
    candidates: dict[str, list[str]] = {}
    for text, image, is_relevant in zip(texts, images, rows["relevant"], strict=True):
        candidates.setdefault(query_of[text], []).append(image)
        relevant.setdefault(query_of[text], {})[image] = int(is_relevant)
    corpus = rows.select([*first_row.values()]).select_columns(["image"])
    return RetrievalSplitData(
        queries=Dataset.from_dict({"id": [*query_of.values()], "text": [*query_of]}),
        corpus=corpus.add_column("id", [*first_row]),
        relevant_docs=relevant,
        top_ranked=candidates,
    )


def _batches(
    inputs: Iterable[Mapping[str, Any]], options: Mapping[str, Any], what: str | None
) -> Iterator[tuple[str, list[Any]]]:
    """Yield what each batch holds, `text` or `image`, and the list of it; `what` names a bar."""
    unknown = {*options} - {"batch_size", "show_progress_bar", "precision"}
    if unknown:
        raise ConfigError(f"this model has no options {', '.join(sorted(unknown))}; leave them out")
    if options.get("precision", "float32") != "float32":
        raise ConfigError(
            f"precision is {options['precision']!r}; the embeddings of this model are float32"
        )
    hide = what is None or not options.get("show_progress_bar", True)
    for batch in tqdm(inputs, what, disable=hide):
        kinds = [kind for kind in ("text", "image") if kind in batch]
        if len(kinds) != 1:
            given = "both a text and an image" if kinds else f"neither, but {', '.join(batch)}"
            raise ConfigError(
                f"an input has {given}; the model reads a text or an image, so leave this task out"
            )
        yield kinds[0], list(batch[kinds[0]])


def _rows_of(
    rows: Any, column: str, options: Mapping[str, Any]
) -> Iterator[dict[str, Sequence[Any]]]:
    """Yield the batches of one column of a data set."""
    if column not in rows.column_names:
        raise ConfigError(
            f"the data of this task have no column {column!r}, but {', '.join(rows.column_names)}"
        )
    size = options.get("batch_size", 32)
    for start in range(0, len(rows), size):
        yield {column: rows[start : start + size][column]}


def _require_modality(task_metadata: Any, prompt_type: Any, wanted: str) -> None:
    given = task_metadata.get_modalities(prompt_type)
    if given != [wanted]:
        what = "queries" if wanted == "text" else "documents"
        raise ConfigError(
            f"the {what} of {task_metadata.name} are {' and '.join(given)}; EDJETwoStage searches "
            "images by texts, so run EDJEEncoder on it"
        )


def _checked(image: Any) -> Image.Image:
    check_kind("an image of the task", image, Image.Image, "one that Pillow opened")
    opened: Image.Image = image
    return opened


def _content_key(image: Image.Image) -> bytes:
    orientation = image.getexif().get(274)
    head = f"{image.mode} {image.size} {orientation}".encode()
    return xxhash.xxh3_128_digest(head + image.tobytes())


def _rows(row_of: Mapping[str, int], candidates: Sequence[str], query: str) -> NDArray[np.intp]:
    """Return the rows of a query's candidates, each once."""
    different = [*dict.fromkeys(map(str, candidates))]
    unknown = [each for each in different if each not in row_of]
    if unknown:
        raise ConfigError(
            f"candidate {unknown[0]!r} of the query {query!r} is not among the documents"
        )
    return np.array([row_of[each] for each in different], np.intp)
