"""Export the text encoder of the first stage, and its tokenizer, to ONNX."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.files import hidden_folder
from edje_qdrant.model.onnx.names import TEXT_TOKENIZER_FILE
from edje_qdrant.model.onnx.program import (
    describe,
    exported_program,
    require_exporter,
    require_onnx_path,
)
from edje_qdrant.model.onnx.tokenizer import tokenizer_data, tokenizer_file
from edje_qdrant.text import clean_captions

if TYPE_CHECKING:
    from edje_qdrant.model.edje import EDJEModel

__all__ = ["TextEncoderExport", "export_text_encoder"]

# A file of this format holds 2 GiB at most; weights of a larger model are in a file beside it.
_LARGEST_FILE = (2 << 30) - (64 << 20)

# Largest accepted difference of an embedding's number to torch's; embeddings have length 1.
_LARGEST_DIFFERENCE = 1e-4

_TEXTS = ("a", "two dogs in the snow", "a red circle above a blue square " * 9, "猫 и собака")


@runtime_checkable
class _IdEncoder(Protocol):
    """An encoder whose text tower is called with ids of one length."""

    tokenizer: Any

    def tokenize(self, texts: Sequence[str]) -> Tensor: ...
    def encode_ids(self, ids: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class TextEncoderExport:
    """The written files.

    Attributes:
        path: The text encoder's file.
        tokenizer: The tokenizer's file, beside it.
        weights: The file of the weights, beside it, if they do not fit in `path`; else None.
        nbytes: Size of both.
        max_difference: Largest difference of an embedding's number to torch's on four texts.
    """

    path: str
    tokenizer: str
    weights: str | None
    nbytes: int
    max_difference: float


def export_text_encoder(model: EDJEModel, out: str | Path) -> TextEncoderExport:
    """Export the first stage's text encoder, with `text_tokenizer.json` beside it.

    Input: `input_ids`, `(batch, t)` int64, from the tokenizer, with its padding. Output:
    `embeddings`, `(batch, d)` float32 of unit length. Texts must be cleaned before
    (`edje_qdrant.text.clean_caption`). The file's metadata hold the contract (`edje.contract`).

    Args:
        model: The model; it is not changed.
        out: The file, `.onnx`; replaced after the new one was checked against torch.

    Raises:
        ConfigError: The encoder or its tokenizer is not supported, `out` does not end in `.onnx`,
            or its folder is missing or holds another model's tokenizer.
        CheckpointError: The file cannot be written, or its embeddings differ from torch's.
        MissingExtraError: The extra `onnx-export` is not installed.
    """
    path = Path(out).expanduser()
    require_onnx_path(path)
    require_exporter()
    encoder: Any = model.encoder
    if not isinstance(encoder, _IdEncoder):
        raise ConfigError(
            f"the text encoder of {encoder.name} cannot be exported: it has no tokenizer of ids; "
            "a SigLIP can"
        )
    ids = encoder.tokenize(clean_captions(_TEXTS)).cpu()  # (n, t)
    tokenizer = _tokenizer(encoder, ids.shape[1])
    tokenizer_path = path.with_name(TEXT_TOKENIZER_FILE)
    if tokenizer_path.exists() and tokenizer_path.read_bytes() != tokenizer:
        raise ConfigError(
            f"{tokenizer_path} belongs to another model, or another version wrote it; choose "
            f"another folder for {path.name}, or remove it"
        )
    form = _TextForm(copy.deepcopy(model.encoder)).to("cpu", torch.float32).eval()
    proto = exported_program(
        form,
        (ids,),
        inputs=["input_ids"],
        outputs=["embeddings"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        what="text encoder",
        path=str(model.name_or_path),
    )
    describe(proto, model.contract(), {})
    with torch.inference_mode():
        expected = form(ids)  # (n, d)
    try:
        with hidden_folder(path) as folder:
            weights = _write(proto, folder / path.name)
            (folder / TEXT_TOKENIZER_FILE).write_bytes(tokenizer)
            difference = _difference(folder, path.name, expected)
            os.replace(folder / TEXT_TOKENIZER_FILE, tokenizer_path)
            if weights is not None:
                os.replace(folder / weights, path.with_name(weights))
            os.replace(folder / path.name, path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path} ({error}); choose a folder you may write to", path=str(path)
        ) from error
    nbytes = path.stat().st_size
    beside = None
    if weights is not None:
        beside = str(path.with_name(weights))
        nbytes += path.with_name(weights).stat().st_size
    return TextEncoderExport(str(path), str(tokenizer_path), beside, nbytes, difference)


class _TextForm(nn.Module):
    """Turn ids into embeddings, by the encoder's own weights."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode `(B, t)` ids: `(B, d)`, unit length."""
        return cast("_IdEncoder", self.encoder).encode_ids(input_ids)


def _tokenizer(encoder: _IdEncoder, length: int) -> bytes:
    """Return a `tokenizer.json` whose ids are those of `encoder.tokenize`.

    Raises:
        ConfigError: The tokenizer is not a fast one (of the library `tokenizers`).
    """
    tokenizer = encoder.tokenizer
    side = tokenizer.padding_side.title()
    return tokenizer_file(tokenizer_data(tokenizer, length, {"Fixed": length}, side))


def _write(proto: Any, path: Path) -> str | None:
    """Write an ONNX model; return the name of the file of its weights, if they need one."""
    import onnx

    if proto.ByteSize() <= _LARGEST_FILE:
        path.write_bytes(proto.SerializeToString())
        return None
    weights = f"{path.name}.data"
    onnx.save_model(proto, path, save_as_external_data=True, location=weights)
    return weights


def _difference(folder: Path, name: str, expected: Tensor) -> float:
    """Return the largest difference between the file's embeddings and torch's.

    The file's tokenizer reads the texts, so that it is checked too.

    Raises:
        CheckpointError: The difference is too large, or the file cannot be run.
    """
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    path = folder / name
    try:
        tokenizer = Tokenizer.from_file(str(folder / TEXT_TOKENIZER_FILE))
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        read = tokenizer.encode_batch(clean_captions(_TEXTS))
        (found,) = session.run(["embeddings"], {"input_ids": np.array([row.ids for row in read])})
        if found.shape != tuple(expected.shape):
            raise ValueError(f"embeddings of shape {found.shape}, not {tuple(expected.shape)}")
    except Exception as error:  # onnxruntime raises its own error types
        raise CheckpointError(
            f"the exported file cannot be run ({error}); nothing was written", path=str(path)
        ) from error
    difference = float(np.abs(found - expected.numpy()).max())
    if not difference <= _LARGEST_DIFFERENCE:
        raise CheckpointError(
            f"the exported text encoder's embeddings differ from the model's by up to "
            f"{difference:.3g}; nothing was written",
            path=str(path),
        )
    return difference
