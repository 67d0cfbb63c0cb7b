"""Score texts against stored tokens, batched so that nothing is spent on padding."""

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
    """Judge images against texts with a model's joint encoder.

    Unlike `EDJEModel.score_pairs`, this cleans and tokenizes a text once however many images it
    meets, puts captions of like length into one batch, and runs the joint encoder's inference form
    (`FastJointEncoder`), which follows the model's weights. Where memory runs out, a batch is
    halved until it fits.

    Args:
        model: Whose joint encoder; on its device.
        batch_size: Pairs scored at a time.
        precision: `auto` is the model's own on a GPU; on a CPU it is the faster one of `float32`
            and `bfloat16`, measured once, for models wide enough to gain by it. `int8` is for CPUs.
            `model` runs the training form, in the model's precision.

    Raises:
        ConfigError: `batch_size` is below 1, the precision is unknown or the device has none such.
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
        """Return what is computed in: `float32`, `bfloat16`, `float16` or `int8`."""
        if self._fast is not None:
            return self._fast.kernel()
        return str(self._model.joint_encoder.classifier.weight.dtype).removeprefix("torch.")

    def score(self, text: str, tokens: NDArray[np.float16] | Tensor) -> NDArray[np.float32]:
        """Score one text against `(n, m, d_text)` tokens.

        Returns:
            `(n,)` logits; higher is better.

        Raises:
            ConfigError: The text is empty once cleaned up, or the tokens have a wrong shape.
            CheckpointError: A score is not a number.
        """
        return self.score_pairs([text] * len(tokens), tokens)

    def score_pairs(
        self, texts: Sequence[str], tokens: NDArray[np.float16] | Tensor
    ) -> NDArray[np.float32]:
        """Score the i-th of `n` texts against the i-th of `(n, m, d_text)` tokens.

        Returns:
            `(n,)` logits; higher is better.

        Raises:
            ConfigError: A text is empty once cleaned up, the tokens have a wrong shape, or there
                are not as many texts as images.
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
        input_ids, attention_mask = self._model.tokenize([*distinct])
        rows = np.array([distinct[text] for text in texts])
        lengths = attention_mask.sum(dim=1).cpu().numpy()[rows]
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
        """Score `(n, t)` captions, padded, whose lengths ascend."""
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
            behind = torch.arange(input_ids.shape[1]) < torch.from_numpy(lengths)[:, None]
            with self._model.inference():
                mask = behind.long().to(input_ids.device)
                logits = self._model.joint_encoder(input_ids, mask, tokens)
        scores: NDArray[np.float32] = logits.float().cpu().numpy()
        return scores


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out, on an accelerator or (in torch's words alone) on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "t allocate memory" in str(error)


def _rows(
    tokens: NDArray[np.float16] | Tensor, rows: NDArray[np.intp], device: torch.device
) -> Tensor:
    """Return rows of tokens, on the device; those that lie in a row are not copied."""
    first = int(rows[0])
    if np.array_equal(rows, np.arange(first, first + len(rows))):
        part = tokens[first : first + len(rows)]
        if not isinstance(part, Tensor):
            # torch warns of arrays that cannot be written to; those of a memory map cannot.
            part = torch.from_numpy(np.require(part, requirements=["C", "W"]))
        return part.to(device)
    if isinstance(tokens, Tensor):
        return tokens[torch.from_numpy(rows).to(tokens.device)].to(device)
    return torch.from_numpy(tokens[rows]).to(device)
