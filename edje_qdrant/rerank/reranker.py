"""Score texts against the stored tokens of images, in batches without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edje_qdrant.checks import check_arrays, check_kind, check_number, check_strings
from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.inference.fast_joint_encoder import FastJointEncoder
from edje_qdrant.model.inference.packed_weights import is_supported
from edje_qdrant.model.inference.precision import PRECISIONS, Precision
from edje_qdrant.rerank.own_stream import OwnStream
from edje_qdrant.rerank.token_feed import TokenFeed, to_device

__all__ = ["Reranker"]

# Pairs in a batch on a CPU, and at most on a GPU. A GPU takes fewer if its memory is small: the
# activations of a batch, estimated for float32, get this share of it.
_CPU_BATCH, _GPU_BATCH, _GPU_SMALLEST = 128, 2048, 32
_GPU_SHARE = 1 / 8


class Reranker:
    """Score pairs of text and image with a model's joint encoder.

    Unlike `EDJEModel.score_pairs`, this cleans and tokenizes each distinct text once, sorts pairs
    by caption length and runs the inference-optimised joint encoder (`FastJointEncoder`), which
    follows changes of the model's weights. On a GPU, all batches are queued before the scores are
    copied back together. If memory runs out, the batch size is halved.

    Args:
        model: The model whose joint encoder scores, on its device.
        batch_size: Number of pairs scored at a time; by default 128 on a CPU, and 2,048 on a GPU or
            fewer if its memory is small.
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
        self, model: EDJEModel, *, batch_size: int | None = None, precision: Precision = "auto"
    ) -> None:
        check_kind("model", model, EDJEModel, "an EDJEModel")
        check_number("batch_size", batch_size, optional=True)
        if not isinstance(precision, str) or precision not in PRECISIONS:
            raise ConfigError(f"precision is {precision!r}; give one of {', '.join(PRECISIONS)}")
        self._model = model
        self._batch_size = batch_size
        self._stream = OwnStream()
        self._fast: FastJointEncoder | None = None
        if precision != "model" and (precision != "auto" or is_supported(model.joint_encoder)):
            self._fast = FastJointEncoder(model.joint_encoder, precision)

    @property
    def precision(self) -> str:
        """Return the precision in use: `float32`, `bfloat16`, `float16` or `int8`."""
        if self._fast is not None:
            return self._fast.kernel()
        return str(self._model.joint_encoder.classifier.weight.dtype).removeprefix("torch.")

    @property
    def pairs_at_once(self) -> int:
        """Return the number of pairs in a batch, at most."""
        return self._batch_size or _default_batch_size(self._model)

    def score(self, text: str, tokens: NDArray[np.float16] | Tensor) -> NDArray[np.float32]:
        """Score one text against the `(n, m, d_text)` tokens of `n` images.

        Returns:
            `(n,)` logits; higher is better.

        Raises:
            ConfigError: The text is empty after clean-up, or the tokens have a wrong shape.
            CheckpointError: A score is not a number.
        """
        check_kind("text", text, str, "a text")
        check_arrays("tokens", tokens)
        return self.score_pairs([text] * len(tokens), tokens)

    def score_pairs(
        self,
        texts: Sequence[str],
        tokens: NDArray[np.float16] | Tensor,
        *,
        queued: Callable[[], object] | None = None,
    ) -> NDArray[np.float32]:
        """Score each of `n` texts against the `(n, m, d_text)` tokens of the image beside it.

        Args:
            texts: `n` texts.
            tokens: Tokens of the image beside each.
            queued: Called once the work is queued: a GPU scores while it runs.

        Returns:
            `(n,)` logits; higher is better.

        Raises:
            ConfigError: A text is empty after clean-up, the tokens have a wrong shape, or the
                numbers of texts and images differ.
            CheckpointError: A score is not a number.
            RuntimeError: Memory does not suffice for a single pair, or the device failed.
        """
        check_strings("texts", texts)
        check_arrays("tokens", tokens)
        expected = (self._model.config.num_tokens, self._model.config.token_dim)
        if tuple(tokens.shape) != (len(texts), *expected):
            raise ConfigError(
                f"tokens of {len(texts)} images have the shape {(len(texts), *expected)} with "
                f"this model, not {tuple(tokens.shape)}"
            )
        if not len(texts):
            return np.empty(0, np.float32)
        device = self._model.device
        with self._stream.on(device):
            captions = self._captions(texts)
            logits = self._logits(captions, TokenFeed(tokens, captions.order, device))
            if queued is not None:
                queued()
            scores = self._stream.numbers(logits.float())  # (n,), in the order of the batches
        if captions.order is not None:
            ordered = np.empty_like(scores)
            ordered[captions.order] = scores
            scores = ordered
        if not np.isfinite(scores).all():
            raise CheckpointError(
                "the joint encoder gave scores that are not numbers; load the model in float32, "
                "and if that does not help, its weights are damaged",
                path=self._model.name_or_path or "",
            )
        return scores

    def _captions(self, texts: Sequence[str]) -> _Captions:
        """Tokenize each distinct text once, and sort the pairs by length."""
        device, row_of = self._model.device, dict.fromkeys(texts)
        ids = self._model.caption_ids([*row_of])
        longest = max(map(len, ids))
        padded = torch.tensor([own + [0] * (longest - len(own)) for own in ids])
        if len(ids) == 1:
            count = len(texts)
            return _Captions(
                to_device(padded, device).expand(count, -1), [(0, count, longest)], None
            )
        for row, text in enumerate(row_of):
            row_of[text] = row
        rows = np.fromiter(map(row_of.__getitem__, texts), np.intp, len(texts))  # (n,)
        lengths = np.array([*map(len, ids)])[rows]  # (n,)
        order = None
        if (lengths[1:] < lengths[:-1]).any():
            order = np.argsort(lengths, kind="stable")
            rows, lengths = rows[order], lengths[order]
        starts = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist()]
        ends = [*starts[1:], len(texts)]
        groups = [*zip(starts, ends, lengths[starts].tolist(), strict=True)]
        chosen = to_device(torch.from_numpy(rows), device)
        return _Captions(to_device(padded, device).index_select(0, chosen), groups, order)

    def _logits(self, captions: _Captions, feed: TokenFeed) -> Tensor:
        """Score the pairs batch by batch, `(n,)`; on a GPU, only queue that."""
        score = self._fast or self._padded_form
        parts: list[Tensor] = []
        start, count = 0, len(captions.input_ids)
        size = self.pairs_at_once
        while start < count:
            stop = min(start + size, count)
            try:
                parts.append(score(captions.groups_in(start, stop), feed.batch(start, stop)))
            except Exception as error:
                if not _is_out_of_memory(error) or stop - start == 1:
                    raise
                size = (stop - start) // 2
                continue
            start = stop
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _padded_form(self, groups: Sequence[Tensor], tokens: Tensor) -> Tensor:
        """Score pairs as `FastJointEncoder` does, by the training form."""
        longest = groups[-1].shape[1]
        input_ids = torch.cat([_padded(ids, longest) for ids in groups])  # (n, t)
        mask = torch.cat([_padded(torch.ones_like(ids), longest) for ids in groups])
        with self._model.inference():
            logits: Tensor = self._model.joint_encoder(input_ids, mask, tokens)  # (n,)
        return logits


@dataclass(frozen=True, slots=True)
class _Captions:
    """The captions of `n` pairs, sorted by length.

    Attributes:
        input_ids: `(n, t)` on the model's device, padded.
        groups: Start, end and length of each group of equal length.
        order: `(n,)` row of each pair in the request; None if the request is sorted already.
    """

    input_ids: Tensor
    groups: list[tuple[int, int, int]]
    order: NDArray[np.intp] | None

    def groups_in(self, start: int, stop: int) -> list[Tensor]:
        """Return the captions `start` to `stop` in groups of equal length, without padding."""
        return [
            self.input_ids[max(first, start) : min(end, stop), :length]
            for first, end, length in self.groups
            if first < stop and end > start
        ]


def _default_batch_size(model: EDJEModel) -> int:
    if model.device.type != "cuda":
        return _CPU_BATCH
    memory = torch.cuda.get_device_properties(model.device).total_memory
    return _gpu_batch_size(model, memory)


def _gpu_batch_size(model: EDJEModel, memory: int) -> int:
    """Return the pairs in a batch on a GPU with that many bytes: a power of two."""
    config: Any = model.joint_encoder.language_model.config
    positions = model.joint_encoder.max_caption_length + model.config.num_tokens + 1
    # In float32: the layer's input and output, queries, keys, values and their result, and the MLP.
    nbytes = 4 * positions * (8 * config.hidden_size + 2 * config.intermediate_size)
    pairs = max(int(_GPU_SHARE * memory / nbytes), 1)
    return min(max(1 << (pairs.bit_length() - 1), _GPU_SMALLEST), _GPU_BATCH)


def _padded(ids: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(ids, (0, length - ids.shape[1]))


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out; on the CPU, only torch's message says so."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "t allocate memory" in str(error)
