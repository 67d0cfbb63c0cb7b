"""Encode images once: the vision encoder is frozen, so its output never changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from edje_qdrant.encoders import Encoder
from edje_qdrant.training.frozen import encode_frozen

__all__ = ["VisionCache"]


class VisionCache:
    """Hold the frozen encoder's output for `n` images, memory-mapped from a folder.

    Attributes:
        tokens: `(n, patches, d_v)` float16.
        embeddings: `(n, d)` float32, unit length.
    """

    def __init__(self, tokens: NDArray[np.float16], embeddings: NDArray[np.float32]) -> None:
        self.tokens = tokens
        self.embeddings = embeddings

    @classmethod
    def build(
        cls,
        encoder: Encoder,
        pixels: Callable[[slice], Tensor],
        count: int,
        folder: Path,
        *,
        device: torch.device,
        batch_size: int = 250,
    ) -> VisionCache:
        """Encode `count` images; what the same encoder left in `folder` is reused.

        Args:
            encoder: Frozen.
            pixels: Range of images -> `(b, 3, H, W)`, as the encoder's `preprocess` gives them.
            count: Images.
            folder: Of this set of images.
            device: Where the encoder is.
            batch_size: Images encoded at a time.
        """
        paths = [
            folder / f"{kind}-{encoder.revision[:12]}.npy" for kind in ("tokens", "embeddings")
        ]
        if not paths[1].exists():
            folder.mkdir(parents=True, exist_ok=True)
            shape = (count, encoder.num_patches, encoder.hidden_size)
            tokens = np.lib.format.open_memmap(paths[0], "w+", np.float16, shape)
            embeddings = np.empty((count, encoder.embedding_dim), np.float32)
            starts = range(0, count, batch_size)
            for start in tqdm(starts, desc="encoding images", unit="batch"):
                rows = slice(start, min(start + batch_size, count))
                states, unit = encode_frozen(encoder, pixels(rows), device)
                tokens[rows] = states.to("cpu", torch.float16).numpy()
                embeddings[rows] = unit.cpu().numpy()
            tokens.flush()
            np.save(paths[1], embeddings)  # last: it says that the tokens are whole
        return cls(np.load(paths[0], mmap_mode="r"), np.load(paths[1]))
