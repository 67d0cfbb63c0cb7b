"""A class with the methods of sentence-transformers' `CrossEncoder` that ranks images by a text.

sentence-transformers itself is not needed.
"""

from __future__ import annotations

import json
import logging
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from edje_qdrant.checks import check_kind, check_list, check_number, check_texts
from edje_qdrant.errors import ConfigError
from edje_qdrant.files import write_atomically
from edje_qdrant.images import ignore_decoder_warnings
from edje_qdrant.integrations.hits import ImageScorer
from edje_qdrant.integrations.image_inputs import (
    Fetch,
    RankableImage,
    TextImagePair,
    load_image,
    read_pair,
)
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.inference.precision import Precision
from edje_qdrant.model.queries import read_pixels
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.threads import batches

__all__ = ["EDJECrossEncoder", "RankableImage", "Scores"]

# Pairs scored at a time, to bound the memory for their tokens.
_PAIRS = 1024

# Files of a folder that sentence-transformers loads.
_SETTINGS, _MODULES = "config_sentence_transformers.json", "modules.json"
_MODULE = "edje_qdrant.integrations.sentence_transformers.EDJEModule"

#: `(n,)` scores in one of the forms that `predict` returns; of a single pair, one of them.
Scores: TypeAlias = "NDArray[np.float32] | np.float32 | Tensor | list[Tensor]"

_log = logging.getLogger(__name__)


class EDJECrossEncoder:
    """Score texts against images, which need not be in a collection.

    Images that are not in a collection are encoded at every call, which takes most of the time;
    the tokens of those in a collection are read from it.

    `predict` and `rank` have the arguments of sentence-transformers' `CrossEncoder`, in its order,
    and its evaluators run on this class. Other than there, scores are logits by default.

    Args:
        model: A model, or the argument of `EDJEModel.from_pretrained`.
        collection: A `TwoStageRetriever` or `AttachedCollection` with the same model; images may
            then be given by their ids: UUIDs as text, or integers.
        device: The device for a model that is loaded here; by default CUDA if available.
        precision: Precision of the joint encoder, see `Reranker`; `collection` has its own.
        fetch: Called with an address that starts with `http:` or `https:`, returns the bytes of the
            image there. By default addresses are refused. It must decide which are safe to fetch.
        prompts: Prompt name -> text that is put before the text of a pair; by default those of the
            folder that the model is loaded from, if any.
        default_prompt_name: Name of the prompt of calls that name none.
        activation_fn: Applied to the `(n,)` logits; by default none.
        revision: Branch, tag or commit of a model that is loaded from the hub.
        cache_dir: Folder for downloads; by default that of huggingface_hub.
        token: Access token of the hub; by default the stored one.
        local_files_only: Make no request: use only what was downloaded before.

    Attributes:
        num_labels: Number of scores of a pair.
        model_card_data: Keeps the figures of sentence-transformers' evaluators.

    Raises:
        ConfigError: An argument is invalid.
        CheckpointError: The model cannot be loaded.

    Examples:
        >>> encoder = EDJECrossEncoder("demo")
        >>> encoder.rank("a red star", ["one.png", "two.png"], top_k=1)
        [{'corpus_id': 1, 'score': 3.2}]
    """

    num_labels = 1

    def __init__(
        self,
        model: EDJEModel | str | Path,
        *,
        collection: ImageScorer | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        fetch: Fetch | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> None:
        settings: dict[str, Any] = {}
        if not isinstance(model, EDJEModel):
            settings = {} if model == "demo" else _read_settings(model)
            model = EDJEModel.from_pretrained(
                model,
                device=device,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
            )
        elif revision is not None or cache_dir is not None or token is not None or local_files_only:
            raise ConfigError(
                "revision, cache_dir, token and local_files_only are for a model that is loaded "
                "here; pass its name, or leave them out"
            )
        self._model = model
        self._collection = collection
        self._reranker = Reranker(model, precision=precision)
        self._fetch = fetch
        self.prompts: dict[str, str] = dict(
            settings.get("prompts") or {} if prompts is None else prompts
        )
        for name, prompt in self.prompts.items():
            check_kind(f"the prompt {name!r}", prompt, str, "a text")
        self.default_prompt_name = default_prompt_name or settings.get("default_prompt_name")
        self._prompt(None, None)
        self.activation_fn = torch.nn.Identity() if activation_fn is None else activation_fn
        self.model_card_data = EvaluatedFigures()

    @property
    def precision(self) -> str:
        """Return the precision of the joint encoder; see `Reranker.precision`."""
        return self._reranker.precision

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return self._model.device

    def rank(
        self,
        query: RankableImage,
        documents: Sequence[RankableImage],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
        device: str | torch.device | None = None,
        pool: None = None,
        chunk_size: None = None,
    ) -> list[dict[str, Any]]:
        """Rank images by how well they match a text, or texts by how well they match an image.

        Args:
            query: The text; or an image, and then `documents` are texts.
            documents: `n` images.
            top_k: Number of images to return; all by default.
            return_documents: Also return the images themselves, as `text`.
            prompt_name: As for `predict`.
            prompt: As for `predict`.
            batch_size: Images encoded at a time.
            show_progress_bar: As for `predict`.
            activation_fn: As for `predict`.
            device: As for `predict`.
            pool: As for `predict`.
            chunk_size: As for `predict`.

        Returns:
            `{"corpus_id": index in documents, "score": logit}`, best first, with `"text"`, the
            document as it was passed, if `return_documents` is set.

        Raises:
            ConfigError: The text contains no word, or an argument is invalid.
            ImageReadError: An image cannot be read.
            TokensNotFoundError: The collection does not contain an image.
        """
        check_number("top_k", top_k, optional=True)
        check_list("documents", documents)
        if query is None or (isinstance(query, str) and not query.startswith("data:image/")):
            check_texts("query", [query])
        scores = self.predict(
            [(query, document) for document in documents],
            prompt_name,
            prompt,
            batch_size,
            show_progress_bar,
            activation_fn,
            device=device,
            pool=pool,
            chunk_size=chunk_size,
        )
        assert isinstance(scores, np.ndarray)
        order = np.argsort(-scores, kind="stable")[:top_k]
        ranked: list[dict[str, Any]] = []
        for place in map(int, order):
            ranked.append({"corpus_id": place, "score": float(scores[place])})
            if return_documents:
                ranked[-1]["text"] = documents[place]
        return ranked

    def predict(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | torch.device | None = None,
        pool: None = None,
        chunk_size: None = None,
    ) -> Scores:
        """Score pairs of a text and an image.

        Args:
            inputs: `n` pairs, or a single one; an image that occurs several times is encoded once.
                A pair is `(text, image)`, or `{"text": ..., "image": ...}`. A text may be
                `{"text": ...}`, an image is a `RankableImage`.
            prompt_name: Name of the prompt, one of `prompts`.
            prompt: The prompt itself.
            batch_size: Images encoded at a time.
            show_progress_bar: Whether to show progress; by default if this module's logger shows
                information.
            activation_fn: Applied to the `(n,)` logits, in place of the attribute `activation_fn`.
            apply_softmax: Has no effect, as a pair has one score; see `activation_fn`.
            convert_to_numpy: Return an array; otherwise a list of tensors without dimensions.
            convert_to_tensor: Return one tensor on the model's device.
            device: Must be the model's.
            pool: Must be None: a model is loaded once.
            chunk_size: Must be None.

        Returns:
            `(n,)` logits, in the order of `inputs`, higher is better; for a single pair, one score.

        Raises:
            ConfigError: As `rank`.
            ImageReadError: As `rank`.
            TokensNotFoundError: As `rank`.
        """
        check_number("batch_size", batch_size)
        for name, flag in (
            ("apply_softmax", apply_softmax or False),
            ("convert_to_numpy", convert_to_numpy),
            ("convert_to_tensor", convert_to_tensor),
            ("show_progress_bar", show_progress_bar or False),
        ):
            check_kind(name, flag, bool, "True or False")
        self._check_one_device(device, pool, chunk_size)
        start = self._prompt(prompt, prompt_name)
        is_single = _is_single(inputs)
        if not is_single:
            check_list("inputs", inputs)
        pairs = [read_pair(pair) for pair in ([inputs] if is_single else inputs)]
        if start:
            pairs = [TextImagePair(start + pair.text, pair.image) for pair in pairs]
        if show_progress_bar is None:
            show_progress_bar = _log.isEnabledFor(logging.INFO)
        logits = torch.from_numpy(self._scores(pairs, batch_size, show_progress_bar))
        activation = self.activation_fn if activation_fn is None else activation_fn
        scores = activation(logits.to(self.device))  # (n,)
        if tuple(scores.shape) != (len(pairs),):
            raise ConfigError(
                f"activation_fn makes {tuple(scores.shape)} of ({len(pairs)},) logits; give a "
                "function of each logit, such as torch.nn.Sigmoid()"
            )
        if convert_to_tensor:
            return scores[0] if is_single else scores
        if not convert_to_numpy:
            return scores[0] if is_single else [*scores]
        array: NDArray[np.float32] = scores.float().cpu().numpy()
        return np.float32(array[0]) if is_single else array

    def evaluate(self, evaluator: Any, output_path: str | None = None) -> Any:
        """Run an evaluator of sentence-transformers.

        Args:
            evaluator: Such as `CrossEncoderRerankingEvaluator`.
            output_path: Folder for its files.

        Returns:
            Its figures.
        """
        return evaluator(self, output_path)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `EDJEModel.from_pretrained` and sentence-transformers load.

        `sentence_transformers.CrossEncoder(folder, trust_remote_code=True)` has the same scores. It
        imports this package (extra `sentence-transformers`), and asks for `trust_remote_code`
        because that is not its own code.

        Args:
            folder: Created if missing; a model in it is replaced.

        Raises:
            CheckpointError: The folder cannot be written.
            ConfigError: `activation_fn` is not a module of torch, which alone can be named.
        """
        kind = type(self.activation_fn)
        if not (isinstance(self.activation_fn, torch.nn.Module) and _is_of_torch(kind)):
            raise ConfigError(
                f"activation_fn is a {kind.__name__}, which a folder cannot name; give a module of "
                "torch, such as torch.nn.Sigmoid()"
            )
        self._model.save_pretrained(folder)
        settings = {
            "model_type": "CrossEncoder",
            "prompts": self.prompts,
            "default_prompt_name": self.default_prompt_name,
            "activation_fn": f"{kind.__module__}.{kind.__name__}",
        }
        modules = [{"idx": 0, "name": "0", "path": "", "type": _MODULE}]
        for name, value in ((_SETTINGS, settings), (_MODULES, modules)):
            write_atomically(Path(folder) / name, (json.dumps(value, indent=2) + "\n").encode())

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        """Return the text that is put before the texts of a call."""
        if prompt is not None:
            check_kind("prompt", prompt, str, "a text")
            if name is not None:
                raise ConfigError("prompt and prompt_name both say what to put before; give one")
            return prompt
        name = self.default_prompt_name if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise ConfigError(f"there is no prompt {name!r}; prompts has {known}")
        return self.prompts[name]

    def _check_one_device(self, device: Any, pool: Any, chunk_size: Any) -> None:
        for name, value in (("pool", pool), ("chunk_size", chunk_size)):
            if value is not None:
                raise ConfigError(
                    f"{name} is for several processes, and the model is in this one; leave it out"
                )
        if device is None:
            return
        try:
            wanted = torch.empty(0, device=device).device
        except (RuntimeError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"device is {device!r}; give {self.device}, or leave it out"
            ) from error
        if wanted != self.device:
            raise ConfigError(
                f"device is {device!r}, and the model is on {self.device}; name the device when "
                "the model is loaded"
            )

    def _scores(
        self, pairs: Sequence[TextImagePair], batch_size: int, show_progress: bool
    ) -> NDArray[np.float32]:
        check_texts("inputs", [*dict.fromkeys(pair.text for pair in pairs)])
        scores = np.empty(len(pairs), np.float32)
        stored: dict[str, list[int]] = {}  # text -> rows of pairs
        unstored: dict[Any, list[int]] = {}  # image -> rows of pairs
        for row, pair in enumerate(pairs):
            if self._is_id(pair.image):
                stored.setdefault(pair.text, []).append(row)
            else:
                key = str(pair.image) if isinstance(pair.image, str | Path) else id(pair.image)
                unstored.setdefault(key, []).append(row)
        for text, rows in stored.items():
            assert self._collection is not None
            scores[rows] = self._collection.score(text, [pairs[row].image for row in rows])
        with tqdm(total=len(unstored), unit="image", disable=not show_progress) as progress:
            for batch in batches(unstored.values(), batch_size):
                self._score_unstored(pairs, batch, scores)
                progress.update(len(batch))
        return scores

    def _score_unstored(
        self,
        pairs: Sequence[TextImagePair],
        images: Sequence[Sequence[int]],
        scores: NDArray[np.float32],
    ) -> None:
        """Encode images, each given by the rows of its pairs, and fill in the scores of these."""
        with warnings.catch_warnings():
            ignore_decoder_warnings()
            pixels = [
                read_pixels(self._model, load_image(pairs[rows[0]].image, self._fetch))
                for rows in images
            ]
        places_and_rows = [(place, row) for place, rows in enumerate(images) for row in rows]
        places, rows = zip(*places_and_rows, strict=True)
        texts = [pairs[row].text for row in rows]
        scores[[*rows]] = score_pixels(
            self._model, self._reranker, torch.cat(pixels), texts, places
        )

    def _is_id(self, image: Any) -> bool:
        if isinstance(image, int) and not isinstance(image, bool):
            if self._collection is None:
                raise ConfigError(
                    f"{image!r} is an id, but there is no collection to look it up in; pass "
                    "collection="
                )
            return True
        return self._collection is not None and isinstance(image, str) and _is_uuid(image)


def score_pixels(
    model: EDJEModel,
    reranker: Reranker,
    pixels: Tensor,
    texts: Sequence[str],
    places: Sequence[int],
) -> NDArray[np.float32]:
    """Encode images and score texts against them.

    Args:
        model: Encodes the images.
        reranker: Scores.
        pixels: `(images, 3, H, W)`, as `EDJEModel.preprocess` returns them.
        texts: `n` texts.
        places: `n` places in `pixels` of each text's image.

    Returns:
        `(n,)` logits.
    """
    tokens = model.encode_pixels(pixels).tokens  # (images, m, d_text)
    scores = np.empty(len(texts), np.float32)
    for rows in batches(range(len(texts)), _PAIRS):
        images = tokens[[places[row] for row in rows]]
        scores[rows] = reranker.score_pairs([texts[row] for row in rows], images)
    return scores


class EvaluatedFigures:
    """Keep the figures of evaluators, in the place of sentence-transformers' model card.

    Attributes:
        figures: Name of the evaluator -> figure name -> value, of its last run.
    """

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, Any]] = {}

    def set_evaluation_metrics(
        self,
        evaluator: Any,
        metrics: Mapping[str, Any],
        epoch: int = 0,  # noqa: ARG002 - sentence-transformers' signature
        step: int = 0,  # noqa: ARG002
    ) -> None:
        """Keep the figures of one evaluator; it calls this."""
        name = getattr(evaluator, "name", "") or type(evaluator).__name__
        self.figures[name] = dict(metrics)


def _is_single(inputs: Any) -> bool:
    """Return whether the argument of `predict` is one pair."""
    if isinstance(inputs, Mapping):
        return True
    if isinstance(inputs, np.ndarray):
        return inputs.ndim == 1 and inputs.size > 0
    if not isinstance(inputs, list | tuple) or not inputs:
        return False
    first = inputs[0]
    if isinstance(first, Mapping):
        return first.keys() != {"text", "image"}
    return not isinstance(first, list | tuple | np.ndarray) or _is_pixels(first)


def _is_pixels(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 3


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _is_of_torch(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "torch"


def _read_settings(folder: str | Path) -> dict[str, Any]:
    """Return what `save_pretrained` wrote beside a model, if anything."""
    path = Path(folder) / _SETTINGS
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return {name: settings.get(name) for name in ("prompts", "default_prompt_name")}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); write the folder again, or delete the file"
        ) from error
