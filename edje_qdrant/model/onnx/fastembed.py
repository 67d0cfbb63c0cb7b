"""fastembed's text encoders as the first stage of a search without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import CheckpointError, ContractMismatchError, MissingExtraError

__all__ = ["FastEmbedTextEncoder"]


class FastEmbedTextEncoder:
    """Embed texts with a model of fastembed, such as `google/siglip2-base-patch16-224`.

    fastembed downloads its ONNX form of the model at the first use. It must be the encoder that the
    collection's model is built on; the rest of that model, the joint encoder, comes from
    `edje-qdrant export-onnx`.

    Args:
        name: A text model of fastembed's.
        options: Further arguments of `fastembed.TextEmbedding`, such as `cache_dir`, `threads` or
            `specific_model_path`, the folder of a model that is on this machine already.

    Raises:
        CheckpointError: There is no such model, or it cannot be loaded.
        MissingExtraError: fastembed is not installed.
    """

    def __init__(self, name: str = "google/siglip2-base-patch16-224", **options: Any) -> None:
        try:
            from fastembed import TextEmbedding
        except ImportError as error:
            raise MissingExtraError("fastembed", "fastembed") from error
        try:
            self._model = TextEmbedding(name, **options)
        except Exception as error:  # errors of the hub, of onnxruntime and of fastembed itself
            raise CheckpointError(
                f"fastembed cannot load {name!r} ({type(error).__name__}: "
                f"{(str(error).splitlines() or [''])[0]}); its text models are listed by "
                "fastembed.TextEmbedding.list_supported_models()",
                path=name,
            ) from error
        self.name = name

    def require(self, contract: TokenContract) -> None:
        """Check that a collection with this contract was written with this encoder.

        Raises:
            ContractMismatchError: It was not.
        """
        found = contract.encoder
        if found != self.name or contract.embedding_dim != self._model.embedding_size:
            raise ContractMismatchError(
                f"fastembed's {self.name!r} makes embeddings of width "
                f"{self._model.embedding_size}, and the model's encoder is {found!r}, of width "
                f"{contract.embedding_dim}; give fastembed's form of {found!r}, or export the "
                "model's own text encoder (edje-qdrant export-onnx --text-encoder)",
                {"encoder": found, "embedding_dim": contract.embedding_dim},
                {"encoder": self.name, "embedding_dim": self._model.embedding_size},
            )

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts that are already cleaned: `(n, d)`, unit length."""
        embeddings = np.stack([*self._model.embed([*texts])]).astype(np.float32)  # (n, d)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        return embeddings

    def tokens_read(self, texts: Sequence[str]) -> list[int]:
        """Return 0 for each text: fastembed does not tell which texts it cuts."""
        return [0] * len(texts)
