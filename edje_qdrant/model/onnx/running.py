"""Run exported models with onnxruntime: search without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.checks import check_arrays, check_number, check_strings
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import CheckpointError, ConfigError, MissingExtraError, StoreError
from edje_qdrant.model.calibration import Calibration
from edje_qdrant.model.onnx.names import (
    JOINT_FILE,
    TEXT_FILE,
    TEXT_TOKENIZER_FILE,
    TOKENIZER_FILE,
)
from edje_qdrant.text import clean_captions, cut_reason

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

__all__ = ["OnnxModel", "OnnxTextEncoder", "TextEncoder", "is_exported"]

# Pairs in a batch, and texts in one.
_PAIRS, _TEXTS = 128, 64

# [CLS] and [SEP].
_ENDS = 2


class TextEncoder(Protocol):
    """What embeds texts for the first stage."""

    def require(self, contract: TokenContract) -> None:
        """Check that the embeddings are of the space of a collection with this contract.

        Raises:
            ContractMismatchError: They are of another model.
        """

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts that are already cleaned: `(n, d)`, unit length."""

    def tokens_read(self, texts: Sequence[str]) -> list[int]:
        """Return for each cleaned text how many tokens of it are read; 0 if it is read whole."""


class OnnxModel:
    """A joint encoder and a text encoder in onnxruntime, for `TwoStageRetriever`.

    Neither torch nor transformers is imported. Such a model searches and scores; it cannot encode
    images or explain.

    Attributes:
        name_or_path: The joint encoder's file.
        calibration: What the logits mean, if the exported model was calibrated.
        precision: `float32`, or `int8` for weights of linear layers in 8 bits.
        pairs_at_once: Pairs scored in one batch, at most.

    Examples:
        >>> from edje_qdrant import TwoStageRetriever
        >>> from edje_qdrant.model.onnx.running import OnnxModel
        >>> model = OnnxModel.from_files("exported")  # doctest: +SKIP
        >>> retriever = TwoStageRetriever.open("index", model=model)  # doctest: +SKIP
    """

    pairs_at_once = _PAIRS

    def __init__(self, joint: Path, text_encoder: TextEncoder, *, threads: int | None = None):
        self._session = new_session(joint, threads)
        told = metadata_of(self._session)
        try:
            self._contract = TokenContract.from_dict(json.loads(told["edje.contract"]))
            self._max_words = int(told["edje.max_words"])
            self.precision = told["edje.precision"]
            calibration = told.get("edje.calibration")
            self.calibration = (calibration and Calibration(**json.loads(calibration))) or None
        except (KeyError, TypeError, ValueError, StoreError) as error:
            raise CheckpointError(
                f"{joint} is no joint encoder that edje-qdrant export-onnx of this version wrote "
                f"({type(error).__name__}: {error}); export it again",
                path=str(joint),
            ) from error
        self._tokenizer = read_tokenizer(joint.with_name(TOKENIZER_FILE))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._end = self._tokenizer.encode("a").ids[-1]
        text_encoder.require(self._contract)
        self._text_encoder = text_encoder
        self.name_or_path = str(joint)

    @classmethod
    def from_files(
        cls,
        path: str | Path,
        *,
        text_encoder: TextEncoder | None = None,
        threads: int | None = None,
    ) -> OnnxModel:
        """Load what `edje-qdrant export-onnx --text-encoder` wrote.

        Args:
            path: The folder with `joint.onnx`, or the joint encoder's file.
            text_encoder: Embeds texts; by default `text_encoder.onnx` beside the joint encoder.
            threads: Threads of each encoder; by default one per core.

        Raises:
            CheckpointError: A file is missing, damaged, or not of this kind.
            ContractMismatchError: The text encoder is of another model.
            ConfigError: `threads` is below 1.
            MissingExtraError: onnxruntime or tokenizers is not installed.
        """
        check_number("threads", threads, optional=True)
        joint = Path(path).expanduser()
        if joint.is_dir():
            joint = joint / JOINT_FILE
        if text_encoder is None:
            text_encoder = OnnxTextEncoder(joint.with_name(TEXT_FILE), threads=threads)
        return cls(joint, text_encoder, threads=threads)

    def contract(self) -> TokenContract:
        """Return the contract of the exported model, with the codec `float16`."""
        return self._contract

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts for the first stage: `(n, d)` float32, unit length.

        Raises:
            ConfigError: A text is empty after clean-up.
        """
        check_strings("texts", texts)
        cleaned = clean_captions(texts)
        batches = [cleaned[i : i + _TEXTS] for i in range(0, len(cleaned), _TEXTS)]
        none = np.empty((0, self._contract.embedding_dim), np.float32)
        return np.concatenate([none, *map(self._text_encoder.encode_texts, batches)])

    def cut_texts(self, texts: Sequence[str]) -> list[str | None]:
        """Return for each text why it is not read whole, with how much is; None for one that is.

        Raises:
            ConfigError: A text is empty after clean-up.
        """
        cleaned = clean_captions(texts)
        lengths = [len(read.ids) - _ENDS for read in self._tokenizer.encode_batch(cleaned)]
        return [
            cut_reason(first, self._max_words - _ENDS, length)
            for first, length in zip(self._text_encoder.tokens_read(cleaned), lengths, strict=True)
        ]

    def score_pairs(self, texts: Sequence[str], tokens: NDArray[np.float16]) -> NDArray[np.float32]:
        """Score each of `n` texts against the `(n, m, d_text)` tokens of the image beside it.

        Returns:
            `(n,)` logits; higher is better.

        Raises:
            ConfigError: A text is empty after clean-up, or the tokens have a wrong shape.
            CheckpointError: A score is not a number.
        """
        check_strings("texts", texts)
        check_arrays("tokens", tokens)
        expected = (len(texts), self._contract.num_tokens, self._contract.token_dim)
        if tokens.shape != expected:
            raise ConfigError(
                f"tokens of {len(texts)} images have the shape {expected} with this model, not "
                f"{tokens.shape}"
            )
        distinct = [*dict.fromkeys(texts)]
        ids = dict(zip(distinct, self._caption_ids(clean_captions(distinct)), strict=True))
        # Pairs of similar lengths share a batch, as shorter captions are padded.
        lengths = np.array([len(ids[text]) for text in texts], np.intp)
        order = np.argsort(lengths, kind="stable")
        logits = np.empty(len(texts), np.float32)
        for start in range(0, len(order), _PAIRS):
            rows = order[start : start + _PAIRS]
            logits[rows] = self._logits([ids[texts[row]] for row in rows], tokens[rows])
        if not np.isfinite(logits).all():
            raise CheckpointError(
                "the joint encoder gave scores that are not numbers; its file is damaged: export "
                "it again",
                path=self.name_or_path,
            )
        return logits

    def _caption_ids(self, cleaned: Sequence[str]) -> list[list[int]]:
        """Return the ids of each cleaned text, `[CLS] ... [SEP]`, cut to the longest caption."""
        limit = self._max_words
        read = [row.ids for row in self._tokenizer.encode_batch([*cleaned])]
        return [ids if len(ids) <= limit else [*ids[: limit - 1], self._end] for ids in read]

    def _logits(
        self, ids: Sequence[Sequence[int]], tokens: NDArray[np.float16]
    ) -> NDArray[np.float32]:
        longest = max(map(len, ids))
        input_ids = np.zeros((len(ids), longest), np.int64)  # (n, t)
        mask = np.zeros_like(input_ids)
        for row, own in enumerate(ids):
            input_ids[row, : len(own)] = own
            mask[row, : len(own)] = 1
        feeds = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "tokens": tokens.astype(np.float32),  # (n, m, d_text)
        }
        (logits,) = self._session.run(["logits"], feeds)
        result: NDArray[np.float32] = logits
        return result


class OnnxTextEncoder:
    """The text encoder that `export_text_encoder` wrote.

    Args:
        path: Its file; `text_tokenizer.json` is beside it.
        threads: Threads; by default one per core.

    Raises:
        CheckpointError: A file is missing, damaged, or not of this kind.
        MissingExtraError: onnxruntime or tokenizers is not installed.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        path = Path(path)
        self._path = path
        self._session = new_session(path, threads)
        try:
            told = metadata_of(self._session)
            self._contract = TokenContract.from_dict(json.loads(told["edje.contract"]))
        except (KeyError, ValueError, StoreError) as error:
            raise CheckpointError(
                f"{path} is no text encoder that edje-qdrant export-onnx --text-encoder of this "
                f"version wrote ({type(error).__name__}: {error}); export it again",
                path=str(path),
            ) from error
        tokenizer = read_tokenizer(path.with_name(TEXT_TOKENIZER_FILE))
        self._tokenizer = tokenizer
        self._length = int((tokenizer.truncation or {}).get("max_length", 0))

    def require(self, contract: TokenContract) -> None:
        """Check that it is the text encoder of the model with this contract.

        Raises:
            ContractMismatchError: It is not.
        """
        contract.require_same_model(self._contract, where=f"the text encoder {self._path}")

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts that are already cleaned: `(n, d)`, unit length."""
        ids = np.array([read.ids for read in self._tokenizer.encode_batch([*texts])], np.int64)
        (embeddings,) = self._session.run(["embeddings"], {"input_ids": ids})  # (n, d)
        result: NDArray[np.float32] = embeddings
        return result

    def tokens_read(self, texts: Sequence[str]) -> list[int]:
        """Return for each cleaned text how many tokens of it are read; 0 if it is read whole."""
        read = self._tokenizer.encode_batch([*texts])
        return [self._length if row.overflowing else 0 for row in read]


def is_exported(path: str | Path) -> bool:
    """Return whether this is an exported joint encoder, or a folder with one."""
    path = Path(path).expanduser()
    return path.suffix == ".onnx" or (path / JOINT_FILE).is_file()


def new_session(path: Path, threads: int | None) -> InferenceSession:
    """Return a session of an ONNX file on the CPU.

    Raises:
        CheckpointError: The file is missing or cannot be run.
        MissingExtraError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx") from error
    if not path.is_file():
        raise CheckpointError(
            f"there is no file {path}; write it with edje-qdrant export-onnx --out "
            f"{path.with_name(JOINT_FILE)} --text-encoder",
            path=str(path),
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own error types
        raise CheckpointError(
            f"{path} cannot be run by onnxruntime ({error}); export it again", path=str(path)
        ) from error


def metadata_of(session: InferenceSession) -> Mapping[str, str]:
    """Return the metadata of a session's file."""
    told: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    return told


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        CheckpointError: The file is missing or damaged.
        MissingExtraError: The library tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("tokenizers", "onnx") from error
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain exceptions
        raise CheckpointError(
            f"cannot read the tokenizer {path} ({error}); export the model again", path=str(path)
        ) from error
