"""EDJEModel: the encoder, the adapter and the joint encoder under one roof."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import BertForMaskedLM

from edje_qdrant.contract import TokenContract
from edje_qdrant.encoders.protocol import Encoder
from edje_qdrant.errors import ConfigError
from edje_qdrant.model.adapter import CompressedAdapter, LocalAdapter
from edje_qdrant.model.calibration import Calibration
from edje_qdrant.model.checkpoints.checkpoint import Checkpoint, new_checkpoint
from edje_qdrant.model.checkpoints.folder import read_checkpoint, write_checkpoint
from edje_qdrant.model.checkpoints.published import read_published
from edje_qdrant.model.config import AdapterKind, EDJEConfig
from edje_qdrant.model.joint_encoder import JointEncoder
from edje_qdrant.text import clean_captions
from edje_qdrant.types import ImageEncoding
from edje_qdrant.version import __version__

__all__ = ["EDJEModel", "Tokens"]

Tokens = NDArray[np.floating[Any]] | Tensor


class EDJEModel(nn.Module):
    """Encode images and texts for search, and score texts against images' tokens.

    Build one with `from_pretrained`, `from_official_checkpoint` or, to train one, `build`.

    Attributes:
        encoder: The stage-1 encoder; frozen while the rest is trained.
        adapter: Vision tokens -> tokens.
        joint_encoder: Caption and tokens -> logit.
        tokenizer: The joint encoder's.
        config: The model's sizes.
        name_or_path: What `from_pretrained` takes to load the model again, where known.
        calibration: What its logits mean, where that was fitted (`edje-qdrant calibrate`).
    """

    def __init__(
        self,
        encoder: Encoder,
        adapter: CompressedAdapter | LocalAdapter,
        joint_encoder: JointEncoder,
        tokenizer: Any,
        config: EDJEConfig,
        *,
        name_or_path: str | None = None,
    ) -> None:
        super().__init__()
        self.encoder: Encoder = encoder
        self.adapter = adapter
        self.joint_encoder = joint_encoder
        self.tokenizer = tokenizer
        self.config = config
        self.name_or_path = name_or_path
        self.calibration: Calibration | None = None

    @classmethod
    def build(
        cls,
        encoder: Encoder,
        language_model: BertForMaskedLM,
        tokenizer: Any,
        *,
        adapter: AdapterKind = "compressed",
        num_tokens: int = 64,
        adapter_hidden_size: int = 8192,
        max_caption_tokens: int = 61,
    ) -> EDJEModel:
        """Put a new model together; the adapter and the joint encoder's heads are untrained.

        The language model and its tokenizer are grown in place by the `<image>` token and, where
        the sequence needs it, by positions.

        Args:
            encoder: The stage-1 encoder.
            language_model: BERT with its masked-word head.
            tokenizer: The language model's.
            adapter: `compressed` or `local`.
            num_tokens: Tokens an image; the local adapter ignores it and keeps one a patch.
            adapter_hidden_size: Width of the adapter's MLP.
            max_caption_tokens: Word pieces of a caption that are read.
        """
        return cls._assemble(
            new_checkpoint(
                encoder,
                language_model,
                tokenizer,
                adapter=adapter,
                num_tokens=num_tokens,
                adapter_hidden_size=adapter_hidden_size,
                max_caption_tokens=max_caption_tokens,
            )
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> EDJEModel:
        """Load a model.

        Args:
            name_or_path: `demo` for the bundled model, a folder written by `save_pretrained`, or a
                hub id of one, or of the published checkpoint.
            device: CUDA where there is one, by default.
            dtype: bfloat16 on CUDA and float32 elsewhere, by default.

        Raises:
            CheckpointError: There is no such model, or it is unreadable or incomplete.
        """
        return cls._assemble(read_checkpoint(str(name_or_path))).place(device, dtype)

    @classmethod
    def from_official_checkpoint(
        cls,
        path: str | Path,
        *,
        siglip_path: str | Path,
        language_model_path: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> EDJEModel:
        """Load the published `pytorch_model.pth`.

        Args:
            path: The file.
            siglip_path: Folder or hub id of the SigLIP it was trained on; only settings, image
                processor and tokenizer are read from it.
            language_model_path: Folder or hub id of the language model; likewise.
            device: CUDA where there is one, by default.
            dtype: bfloat16 on CUDA and float32 elsewhere, by default.

        Raises:
            CheckpointError: The file is unreadable, lacks a key or has a tensor of a wrong shape.
        """
        checkpoint = read_published(
            path, siglip_path=str(siglip_path), language_model_path=str(language_model_path)
        )
        return cls._assemble(checkpoint).place(device, dtype)

    @classmethod
    def _assemble(cls, checkpoint: Checkpoint) -> EDJEModel:
        model = cls(
            checkpoint.encoder,
            checkpoint.adapter,
            checkpoint.joint_encoder,
            checkpoint.tokenizer,
            checkpoint.config,
            name_or_path=checkpoint.source,
        )
        model.calibration = checkpoint.calibration
        return model

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the model into one folder that needs nothing else to be loaded back.

        Args:
            folder: Made where missing; a model that lies there is replaced.
            dtype: Store the weights in this precision; as they are, by default.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        checkpoint = Checkpoint(
            self.encoder,
            self.adapter,
            self.joint_encoder,
            self.tokenizer,
            self.config,
            self.calibration,
        )
        write_checkpoint(checkpoint, Path(folder), dtype)
        self.name_or_path = str(Path(folder).resolve())

    def place(self, device: str | torch.device | None, dtype: torch.dtype | None) -> EDJEModel:
        """Move to a device and a precision (defaults as in `from_pretrained`), ready to infer."""
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if chosen.type == "cuda" else torch.float32)
        self.to(chosen, dtype)
        self.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return self.joint_encoder.classifier.weight.device

    def contract(self) -> TokenContract:
        """Return what a collection must be written with for this model to read it."""
        return TokenContract(
            encoder=self.encoder.name,
            encoder_revision=self.encoder.revision,
            preprocessing=self.encoder.preprocessing,
            embedding_dim=self.config.embedding_dim,
            adapter_hash=self.adapter.weights_hash,
            num_tokens=self.config.num_tokens,
            token_dim=self.config.token_dim,
            model=self.name_or_path,
            library_version=__version__,
        )

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Turn images of any mode into `(n, 3, H, W)` float32; safe in worker threads.

        Raises:
            ImageReadError: An image's data cannot be decoded.
        """
        return self.encoder.preprocess(images)

    def encode_pixels(self, pixel_values: Tensor) -> ImageEncoding:
        """Encode what `preprocess` returned, in one batch."""
        with self.inference():
            embeddings, vision_tokens = self.encoder.encode_pixels(pixel_values)
            tokens = self.adapter(vision_tokens)
        return ImageEncoding(
            embeddings.float().cpu().numpy(), tokens.to("cpu", torch.float16).numpy()
        )

    def encode_images(
        self, images: Sequence[Image.Image], *, batch_size: int = 32
    ) -> ImageEncoding:
        """Encode images of any mode.

        Args:
            images: Images.
            batch_size: Images encoded at a time.

        Returns:
            `(n, d)` embeddings and `(n, m, d_text)` tokens.

        Raises:
            ImageReadError: An image's data cannot be decoded.
        """
        c = self.config
        embeddings = np.empty((len(images), c.embedding_dim), np.float32)
        tokens = np.empty((len(images), c.num_tokens, c.token_dim), np.float16)
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            encoding = self.encode_pixels(self.preprocess(images[rows]))
            embeddings[rows], tokens[rows] = encoding.embeddings, encoding.tokens
        return ImageEncoding(embeddings, tokens)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts for the first stage: `(n, d)`, unit length.

        Raises:
            ConfigError: A text is empty once cleaned up.
        """
        if isinstance(texts, str):
            raise ConfigError("encode_texts takes a list of texts, not one text")
        if not texts:
            return np.empty((0, self.config.embedding_dim), np.float32)
        cleaned = clean_captions(texts)
        with self.inference():
            return self.encoder.encode_texts(cleaned).float().cpu().numpy()

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Clean texts up and return the joint encoder's `input_ids` and `attention_mask`.

        Both `(n, t)` on the model's device: `[CLS] ... [SEP]`, padded on the right to the longest.

        Raises:
            ConfigError: A text is empty once cleaned up.
        """
        encoded = self.tokenizer(
            clean_captions(texts),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self.joint_encoder.max_caption_length,
            return_tensors="pt",
        )
        return encoded["input_ids"].to(self.device), encoded["attention_mask"].to(self.device)

    def score(self, text: str, tokens: Tokens, *, batch_size: int = 128) -> NDArray[np.float32]:
        """Score one text against many images.

        Args:
            text: The query.
            tokens: `(n, m, d_text)`, as `encode_images` gives them.
            batch_size: Pairs scored at a time.

        Returns:
            `(n,)` logits; higher is better.

        Raises:
            ConfigError: The text is empty once cleaned up, or the tokens have a wrong shape.
        """
        ids, mask = self.tokenize([text])
        n = len(tokens)
        return self._score(ids.expand(n, -1), mask.expand(n, -1), tokens, batch_size)

    def score_pairs(
        self, texts: Sequence[str], tokens: Tokens, *, batch_size: int = 128
    ) -> NDArray[np.float32]:
        """Score the i-th text against the i-th image.

        Args:
            texts: `n` texts.
            tokens: `(n, m, d_text)`.
            batch_size: Pairs scored at a time.

        Returns:
            `(n,)` logits; higher is better.

        Raises:
            ConfigError: A text is empty once cleaned up, the tokens have a wrong shape, or there
                are not as many texts as images.
        """
        if len(texts) != len(tokens):
            raise ConfigError(f"{len(texts)} texts and the tokens of {len(tokens)} images")
        if not len(texts):
            return np.empty(0, np.float32)
        return self._score(*self.tokenize(texts), tokens, batch_size)

    def _score(
        self, input_ids: Tensor, attention_mask: Tensor, tokens: Tokens, batch_size: int
    ) -> NDArray[np.float32]:
        expected = (self.config.num_tokens, self.config.token_dim)
        if tuple(tokens.shape[1:]) != expected:
            raise ConfigError(
                f"tokens must have shape (n, {expected[0]}, {expected[1]}), "
                f"not {tuple(tokens.shape)}; they were made by another model"
            )
        scores = np.empty(len(tokens), np.float32)
        with self.inference():
            for start in range(0, len(tokens), batch_size):
                rows = slice(start, start + batch_size)
                part = tokens[rows]
                if not isinstance(part, Tensor):
                    part = torch.tensor(part)
                logits = self.joint_encoder(
                    input_ids[rows], attention_mask[rows], part.to(self.device)
                )
                scores[rows] = logits.float().cpu().numpy()
        return scores

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Infer without gradients and dropout, whatever mode the modules are in."""
        training = [module for module in self.modules() if module.training]
        for module in training:
            module.training = False
        try:
            with torch.inference_mode():
                yield
        finally:
            for module in training:
                module.training = True
