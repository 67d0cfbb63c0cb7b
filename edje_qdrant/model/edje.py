"""`EDJEModel`: the stage-1 encoder, the adapter and the joint encoder in one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from edje_qdrant.checks import check_arrays, check_kind, check_list, check_number, check_strings
from edje_qdrant.contract import TokenContract
from edje_qdrant.encoders.hub import HubOptions
from edje_qdrant.encoders.protocol import Encoder, SplitPixels
from edje_qdrant.errors import ConfigError
from edje_qdrant.model.adapter import CompressedAdapter, LocalAdapter
from edje_qdrant.model.calibration import Calibration
from edje_qdrant.model.checkpoints.card import model_card
from edje_qdrant.model.checkpoints.checkpoint import Checkpoint, new_checkpoint
from edje_qdrant.model.checkpoints.folder import (
    bundled_folder,
    read_checkpoint,
    write_checkpoint,
)
from edje_qdrant.model.checkpoints.published import read_published
from edje_qdrant.model.checkpoints.push import push_checkpoint
from edje_qdrant.model.config import AdapterKind, EDJEConfig
from edje_qdrant.model.cut_texts import cut_texts
from edje_qdrant.model.dtypes import DType, as_dtype
from edje_qdrant.model.flat_modules import FlatModules
from edje_qdrant.model.joint_encoder import JointEncoder
from edje_qdrant.text import clean_captions
from edje_qdrant.types import ImageEncoding
from edje_qdrant.version import __version__

if TYPE_CHECKING:
    from transformers import BertForMaskedLM

__all__ = ["EDJEModel", "Tokens"]

Tokens = NDArray[np.floating[Any]] | Tensor


class EDJEModel(nn.Module):
    """Encode images and texts for search, and score texts against images' tokens.

    Load a model with `from_pretrained` or `from_official_checkpoint`; create one to train with
    `build`.

    Attributes:
        encoder: The stage-1 encoder; frozen during training.
        adapter: Vision tokens -> tokens.
        joint_encoder: Caption and tokens -> logit.
        tokenizer: The joint encoder's tokenizer.
        config: The model's sizes.
        name_or_path: What `from_pretrained` takes to load this model again, if known.
        calibration: What the logits mean, if that was fitted (`edje-qdrant calibrate`).

    Example:
        >>> from PIL import Image
        >>> from edje_qdrant import EDJEModel
        >>> model = EDJEModel.from_pretrained("demo", device="cpu")
        >>> images = [Image.new("RGB", (256, 256), colour) for colour in ("red", "blue", "green")]
        >>> encoding = model.encode_images(images)
        >>> encoding.embeddings.shape, encoding.tokens.shape
        ((3, 192), (3, 16, 128))
        >>> model.encode_texts(["a red star above a blue ring"]).shape
        (1, 192)
        >>> model.score("a red star above a blue ring", encoding.tokens).shape
        (3,)
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
        self._flat = FlatModules()
        # Texts and ids of the last call: a search needs them to score, and to see what is cut.
        self._last_captions: tuple[tuple[Any, ...], list[list[int]]] | None = None

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
        """Create a new model with an untrained adapter and untrained joint encoder heads.

        The `<image>` token is added to the language model and its tokenizer in place, and
        positions to the language model if the longest sequence needs more.

        Args:
            encoder: The stage-1 encoder.
            language_model: BERT with its masked-language-model head.
            tokenizer: The language model's tokenizer.
            adapter: `compressed` or `local`.
            num_tokens: Tokens per image; ignored for `local`, which makes one per patch.
            adapter_hidden_size: Width of the adapter's MLP.
            max_caption_tokens: Word pieces read of a caption; longer captions are cut.
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
        dtype: DType | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> EDJEModel:
        """Load a model.

        If the hub does not answer within two seconds, what was downloaded before is used; the
        environment variable `HF_HUB_ETAG_TIMEOUT` sets another limit.

        Args:
            name_or_path: `demo` for the bundled model, a folder written by `save_pretrained`, or a
                hub id of such a folder or of the published checkpoint. A hub id may end with a
                revision, `someone/edje@v2`; collections remember it so.
            device: Defaults to CUDA if available.
            dtype: Data type of the weights, or its name, such as `"bfloat16"`; bfloat16 on CUDA
                and float32 elsewhere by default. One that is given is also the one that scores are
                computed in, unless a `Reranker` is told otherwise.
            revision: Branch, tag or commit on the hub.
            cache_dir: Folder for downloads; by default that of huggingface_hub.
            token: Access token of the hub; by default the stored one, or that of `HF_TOKEN`.
            local_files_only: Make no request: use only what was downloaded before.

        Raises:
            CheckpointError: There is no such model, or it is unreadable or incomplete.
            ConfigError: An option is invalid, or a folder is given with a revision.
        """
        options = HubOptions(
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        as_dtype("dtype", dtype)  # before anything is downloaded
        return cls._assemble(read_checkpoint(name_or_path, options)).place(device, dtype)

    @classmethod
    def from_official_checkpoint(
        cls,
        path: str | Path,
        *,
        siglip_path: str | Path,
        language_model_path: str | Path,
        device: str | torch.device | None = None,
        dtype: DType | None = None,
    ) -> EDJEModel:
        """Load the published `pytorch_model.pth`.

        Args:
            path: The file.
            siglip_path: Folder or hub id of the SigLIP it was trained on; only its settings, image
                processor and tokenizer are read.
            language_model_path: Folder or hub id of the language model; only its settings and
                tokenizer are read.
            device: Defaults to CUDA if available.
            dtype: Data type of the weights, or its name, such as `"bfloat16"`; bfloat16 on CUDA
                and float32 elsewhere by default. One that is given is also the one that scores are
                computed in, unless a `Reranker` is told otherwise.

        Raises:
            ConfigError: `dtype` is no data type, or `device` no device.
            CheckpointError: The file is unreadable, or a tensor is missing or has a wrong shape.
        """
        as_dtype("dtype", dtype)
        checkpoint = read_published(path, siglip=siglip_path, language_model=language_model_path)
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

    def save_pretrained(self, folder: str | Path, *, dtype: DType | None = None) -> None:
        """Save the model into one self-contained folder.

        Args:
            folder: Created if missing; a model in it is replaced.
            dtype: Data type of the stored weights, or its name; defaults to each weight's own.

        Raises:
            ConfigError: `dtype` is no data type.
            CheckpointError: The folder cannot be written.
        """
        check_kind("folder", folder, (str, Path), "a folder")
        write_checkpoint(self._checkpoint(), Path(folder), as_dtype("dtype", dtype))
        self.name_or_path = str(Path(folder).resolve())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload an EDJE model",
        create_pr: bool = False,
        license: str | None = None,
        tags: Sequence[str] = (),
        card: str | None = None,
        dtype: DType | None = None,
    ) -> str:
        """Upload the model to the Hugging Face hub, with a model card, in one commit.

        Files of an earlier model there that this one does not have are deleted; others stay.

        Args:
            repo_id: `owner/name`; the repository is created if missing.
            private: Whether a new repository is private; None for the owner's default.
            revision: Branch, created if missing; `main` by default.
            token: Access token; by default the stored one, or that of `HF_TOKEN`.
            commit_message: First line of the commit's message.
            create_pr: Open a pull request in place of a commit to the branch.
            license: The licence's name as the hub writes it, such as `apache-2.0`.
            tags: Tags for the card, besides those of every model of this package.
            card: Text of `README.md`; by default it is written from what the model's folder
                records: sizes, calibration, and the recipe and figures of its training.
            dtype: Data type of the stored weights, or its name; defaults to each weight's own.

        Returns:
            Address of the commit, or of the pull request.

        Raises:
            CheckpointError: The hub cannot be reached or refuses the upload.
            ConfigError: An argument is invalid.
        """
        stored = as_dtype("dtype", dtype)
        HubOptions(revision=revision, token=token)  # checks them
        check_kind("repo_id", repo_id, str, "a text")
        check_kind("commit_message", commit_message, str, "a text")
        check_kind("license", license, (str, type(None)), "a text")
        check_kind("card", card, (str, type(None)), "a text")
        check_strings("tags", tags)
        if card is None:
            name = self.name_or_path
            folder = bundled_folder() if name == "demo" else None if name is None else Path(name)
            card = model_card(
                self._checkpoint(), repo_id, license=license, tags=tags, folder=folder
            )
        return push_checkpoint(
            self._checkpoint(),
            repo_id,
            card=card,
            dtype=stored,
            private=private,
            revision=revision,
            token=token,
            commit_message=commit_message,
            create_pr=create_pr,
        )

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            self.encoder,
            self.adapter,
            self.joint_encoder,
            self.tokenizer,
            self.config,
            self.calibration,
        )

    def place(self, device: str | torch.device | None, dtype: DType | None) -> EDJEModel:
        """Move to a device and a precision (defaults as in `from_pretrained`); set eval mode."""
        dtype = as_dtype("dtype", dtype)
        try:
            chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"device is {device!r}; give cpu, cuda or cuda:1") from error
        explicit = dtype is not None
        dtype = dtype or (torch.bfloat16 if chosen.type == "cuda" else torch.float32)
        self.to(chosen, dtype)
        self.joint_encoder.dtype_is_explicit = explicit
        self.eval()
        return self

    def __repr__(self) -> str:
        """Return one line; `print(model.joint_encoder)` shows the modules of a part."""
        config, weight = self.config, self.joint_encoder.classifier.weight
        return (
            f"{type(self).__name__}({self.name_or_path!r}, encoder={config.encoder!r}, "
            f"tokens={config.num_tokens}x{config.token_dim}, device='{weight.device}', "
            f"dtype={str(weight.dtype).removeprefix('torch.')!r})"
        )

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.joint_encoder.classifier.weight.device

    @property
    def encoding_device(self) -> torch.device:
        """Return the device of the weights that encode images."""
        weight = next(self.adapter.parameters(), None)
        return self.device if weight is None else weight.device

    def contract(self) -> TokenContract:
        """Return the contract of collections that this model writes and can read."""
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
        """Preprocess images of any mode to `(n, 3, H, W)` float32; thread-safe.

        Raises:
            ImageReadError: An image's data cannot be decoded.
        """
        check_list("images", images)
        for image in images:
            check_kind("an image", image, Image.Image, "one that Pillow opened")
        return self.encoder.preprocess(images)

    def encode_pixels(self, pixel_values: Tensor) -> ImageEncoding:
        """Encode images in one batch.

        Args:
            pixel_values: The output of `preprocess`; or, for an encoder with `resize` and
                `normalise`, resized images `(n, H, W, 3)` uint8.
        """
        return self.start_encoding(pixel_values)()

    def start_encoding(self, pixel_values: Tensor) -> Callable[[], ImageEncoding]:
        """Start to encode images in one batch.

        Args:
            pixel_values: As for `encode_pixels`.

        Returns:
            A function that returns the encodings. On a GPU it waits for them; until then the GPU
            works while this process prepares the next batch.
        """
        with self.inference():
            if pixel_values.dtype == torch.uint8:
                pixels = pixel_values.to(self.encoding_device, non_blocking=True)
                pixel_values = cast("SplitPixels", self.encoder).normalise(pixels)
            # (B, d) and (B, n, d_v)
            embeddings, vision_tokens = self.encoder.encode_pixels(pixel_values)
            tokens = self.adapter(vision_tokens).to(torch.float16)  # (B, m, d_text)
            embeddings = embeddings.float()
        if tokens.device.type != "cuda":
            encoding = ImageEncoding(embeddings.cpu().numpy(), tokens.cpu().numpy())
            return lambda: encoding
        copies = [
            torch.empty(each.shape, dtype=each.dtype, pin_memory=True).copy_(
                each, non_blocking=True
            )
            for each in (embeddings, tokens)
        ]
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch has no types for it
        copied.record(torch.cuda.current_stream(tokens.device))

        def wait() -> ImageEncoding:
            copied.synchronize()
            return ImageEncoding(copies[0].numpy(), copies[1].numpy())

        return wait

    def encode_images(
        self, images: Sequence[Image.Image], *, batch_size: int = 32
    ) -> ImageEncoding:
        """Encode images of any mode.

        Args:
            images: Pillow images.
            batch_size: Images encoded at a time.

        Returns:
            `(n, d)` embeddings and `(n, m, d_text)` tokens.

        Raises:
            ImageReadError: An image's data cannot be decoded.
        """
        check_number("batch_size", batch_size)
        check_list("images", images)
        c = self.config
        embeddings = np.empty((len(images), c.embedding_dim), np.float32)
        tokens = np.empty((len(images), c.num_tokens, c.token_dim), np.float16)
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            encoding = self.encode_pixels(self.preprocess(images[rows]))
            embeddings[rows], tokens[rows] = encoding.embeddings, encoding.tokens
        return ImageEncoding(embeddings, tokens)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts for the first stage: `(n, d)` float32, unit length.

        Raises:
            ConfigError: A text is empty after clean-up.
        """
        return self.embed_texts(texts).cpu().numpy()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Do as `encode_texts` does, but leave the embeddings on the model's device.

        On a GPU this only queues the work.

        Raises:
            ConfigError: A text is empty after clean-up.
        """
        check_strings("texts", texts)
        if not len(texts):
            return torch.empty((0, self.config.embedding_dim), device=self.device)
        cleaned = clean_captions(texts)
        with self.inference():
            return self.encoder.encode_texts(cleaned).float()  # (n, d)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Clean texts and return the joint encoder's `input_ids` and `attention_mask`.

        Both are `(n, t)` on the model's device: `[CLS] ... [SEP]`, padded on the right to the
        longest text.

        Raises:
            ConfigError: A text is empty after clean-up.
        """
        ids = self.caption_ids(texts)
        input_ids = torch.full((len(ids), max(map(len, ids))), self.tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, own in enumerate(ids):
            input_ids[row, : len(own)] = torch.tensor(own)
            attention_mask[row, : len(own)] = 1
        return input_ids.to(self.device), attention_mask.to(self.device)

    def caption_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Clean texts and return the joint encoder's ids of each, `[CLS] ... [SEP]`, unpadded.

        Raises:
            ConfigError: A text is empty after clean-up.
        """
        limit, end = self.joint_encoder.max_caption_length, self.joint_encoder.sep_token_id
        return [
            ids if len(ids) <= limit else [*ids[: limit - 1], end]
            for ids in self._whole_captions(texts)
        ]

    def caption_lengths(self, texts: Sequence[str]) -> list[int]:
        """Clean texts and return how many ids each has before it is cut, `[CLS]` and `[SEP]` too.

        Raises:
            ConfigError: A text is empty after clean-up.
        """
        return [*map(len, self._whole_captions(texts))]

    def cut_texts(self, texts: Sequence[str]) -> list[str | None]:
        """Return for each text why it is not read whole, with how much is; None for one that is.

        Searches report this in `SearchResult.truncated`; this is for scores without a result.

        Raises:
            ConfigError: A text is empty after clean-up.
        """
        check_strings("texts", texts)
        return cut_texts(self, texts)

    def _whole_captions(self, texts: Sequence[str]) -> list[list[int]]:
        check_strings("texts", texts)
        cleaned, backend = clean_captions(texts), self.tokenizer.backend_tokenizer
        key, last = (backend, backend.get_vocab_size(), *cleaned), self._last_captions
        if last is None or last[0] != key:
            # Another call of the tokenizer may have left these on.
            if backend.truncation is not None:
                backend.no_truncation()
            if backend.padding is not None:
                backend.no_padding()
            ids = [encoding.ids for encoding in backend.encode_batch_fast(cleaned)]
            last = self._last_captions = (key, ids)
        return last[1]

    def score(self, text: str, tokens: Tokens, *, batch_size: int = 128) -> NDArray[np.float32]:
        """Score one text against many images.

        Args:
            text: The query.
            tokens: `(n, m, d_text)`, as `encode_images` returns them.
            batch_size: Pairs scored at a time.

        Returns:
            `(n,)` logits; higher is better.

        Raises:
            ConfigError: The text is empty after clean-up, or the tokens have a wrong shape.
        """
        check_kind("text", text, str, "a text")
        check_arrays("tokens", tokens)
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
            ConfigError: A text is empty after clean-up, the tokens have a wrong shape, or the
                numbers of texts and images differ.
        """
        check_strings("texts", texts)
        check_arrays("tokens", tokens)
        if len(texts) != len(tokens):
            raise ConfigError(f"{len(texts)} texts and the tokens of {len(tokens)} images")
        if not len(texts):
            return np.empty(0, np.float32)
        return self._score(*self.tokenize(texts), tokens, batch_size)

    def _score(
        self, input_ids: Tensor, attention_mask: Tensor, tokens: Tokens, batch_size: int
    ) -> NDArray[np.float32]:
        check_number("batch_size", batch_size)
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
                )  # (b,)
                scores[rows] = logits.float().cpu().numpy()
        return scores

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Switch off gradients and dropout; each module's mode is restored afterwards."""
        modules = (self, *self._flat.below(*self.children()))
        training = [module for module in modules if module.training]
        for module in training:
            module.training = False
        try:
            with torch.inference_mode():
                yield
        finally:
            for module in training:
                module.training = True
