"""Score texts against the stored tokens of images, in batches without padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.inference.fast_joint_encoder import FastJointEncoder
from edje_qdrant.model.inference.packed_weights import is_supported
from edje_qdrant.model.inference.precision import PRECISIONS, Precision

__all__ = ["Reranker"]


class Reranker:
    """Score pairs of text and image with a model's joint encoder.

    Unlike `EDJEModel.score_pairs`, this cleans and tokenizes each distinct text once, sorts pairs
    by caption length and runs the inference-optimised joint encoder (`FastJointEncoder`), which
    follows changes of the model's weights. If memory runs out, the batch size is halved.

    Args:
        model: The model whose joint encoder scores, on its device.
        batch_size: Number of pairs scored at a time.
        precision: `auto` is the model's precision on a GPU, and that of a `dtype` the model was
            loaded with. Otherwise, on a CPU, it is `bfloat16` if the processor has instructions for
            it and the model is at least 256 wide, else `float32`: the same in every process of a
            machine. `int8` is for CPUs. `model` runs the training form of the joint encoder, in
            the model's precision.

    Raises:
        ConfigError: `batch_size` is below 1, or the precision is unknown or not supported by the
            device.

    Examples:
        >>> from PIL import Image
        >>> from edje_qdrant import EDJEModel, Reranker
        >>> model = EDJEModel.from_pretrained("demo", device="cpu")
        >>> images = [Image.new("RGB", (256, 256), colour) for colour in ("red", "blue")]
        >>> tokens = model.encode_images(images).tokens
        >>> tokens.shape
        (2, 16, 128)
        >>> reranker = Reranker(model)
        >>> reranker.score("a red star", tokens).shape
        (2,)
        >>> reranker.score_pairs(["a red star", "a blue ring"], tokens).shape
        (2,)
    """

    def __init__(
        self, model: EDJEModel, *, batch_size: int = 128, precision: Precision = "auto"
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; give 1 or more")
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is {precision!r}; give one of {', '.join(PRECISIONS)}")
        self._model = model
        self._batch_size = batch_size
        self._fast: FastJointEncoder | None = None
        if precision != "model" and (precision != "auto" or is_supported(model.joint_encoder)):
            self._fast = FastJointEncoder(model.joint_encoder, precision)

    @property
    def precision(self) -> str:
        """Return the precision in use: `float32`, `bfloat16`, `float16` or `int8`."""
        if self._fast is not None:
            return self._fast.kernel()
        return str(self._model.joint_encoder.classifier.weight.dtype).removeprefix("torch.")

    def score(self, text: str, tokens: NDArray[np.float16] | Tensor) -> NDArray[np.float32]:
        """Score one text against the `(n, m, d_text)` tokens of `n` images.

        Returns:
            `(n,)` logits; higher is better.

        Raises:
            ConfigError: The text is empty after clean-up, or the tokens have a wrong shape.
            CheckpointError: A score is not a number.
        """
        return self.score_pairs([text] * len(tokens), tokens)

    def score_pairs(
        self, texts: Sequence[str], tokens: NDArray[np.float16] | Tensor
    ) -> NDArray[np.float32]:
        """Score each of `n` texts against the `(n, m, d_text)` tokens of the image beside it.

        Returns:
            `(n,)` logits; higher is better.

        Raises:
            ConfigError: A text is empty after clean-up, the tokens have a wrong shape, or the
                numbers of texts and images differ.
            CheckpointError: A score is not a number.
            RuntimeError: Memory does not suffice for a single pair, or the device failed.
        """
        expected = (self._model.config.num_tokens, self._model.config.token_dim)
        if tuple(tokens.shape) != (len(texts), *expected):
            raise ConfigError(
                f"tokens of {len(texts)} images have the shape {(len(texts), *expected)} with "
                f"this model, not {tuple(tokens.shape)}"
            )
        scores = np.empty(len(texts), np.float32)
        if not len(texts):
            return scores
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        input_ids, attention_mask = self._model.tokenize([*distinct])  # (distinct, t)
        rows = np.array([distinct[text] for text in texts])  # (n,)
        lengths = attention_mask.sum(dim=1).cpu().numpy()[rows]  # (n,)
        order = np.argsort(lengths, kind="stable")
        start, size = 0, self._batch_size
        while start < len(order):
            pairs = order[start : start + size]
            captions = torch.from_numpy(rows[pairs]).to(input_ids.device)
            try:
                scores[pairs] = self._logits(
                    input_ids[captions],
                    lengths[pairs],
                    _rows(tokens, pairs, input_ids.device),
                )
            except Exception as error:
                if not _is_out_of_memory(error) or len(pairs) == 1:
                    raise
                size = len(pairs) // 2
                continue
            start += size
        if not np.isfinite(scores).all():
            raise CheckpointError(
                "the joint encoder gave scores that are not numbers; load the model in float32, "
                "and if that does not help, its weights are damaged",
                path=self._model.name_or_path or "",
            )
        return scores

    def _logits(
        self, input_ids: Tensor, lengths: NDArray[np.int64], tokens: Tensor
    ) -> NDArray[np.float32]:
        """Score `(n, t)` padded captions with ascending lengths against `(n, m, d_text)` tokens."""
        if self._fast is not None:
            starts = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist()]
            ends = [*starts[1:], len(lengths)]
            groups = [
                input_ids[start:end, : int(lengths[start])]
                for start, end in zip(starts, ends, strict=True)
            ]
            logits = self._fast(groups, tokens)
        else:
            input_ids = input_ids[:, : int(lengths[-1])]
            read = torch.arange(input_ids.shape[1]) < torch.from_numpy(lengths)[:, None]  # (n, t)
            with self._model.inference():
                mask = read.long().to(input_ids.device)
                logits = self._model.joint_encoder(input_ids, mask, tokens)
        scores: NDArray[np.float32] = logits.float().cpu().numpy()
        return scores


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out; on the CPU, only torch's message says so."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "t allocate memory" in str(error)


def _rows(
    tokens: NDArray[np.float16] | Tensor, rows: NDArray[np.intp], device: torch.device
) -> Tensor:
    """Return `(n, m, d_text)` rows of tokens on the device; consecutive rows are not copied."""
    first = int(rows[0])
    if np.array_equal(rows, np.arange(first, first + len(rows))):
        part = tokens[first : first + len(rows)]
        if not isinstance(part, Tensor):
            # torch warns about read-only arrays, such as those of a memory map.
            part = torch.from_numpy(np.require(part, requirements=["C", "W"]))
        return part.to(device)
    if isinstance(tokens, Tensor):
        return tokens[torch.from_numpy(rows).to(tokens.device)].to(device)
    return torch.from_numpy(tokens[rows]).to(device)
