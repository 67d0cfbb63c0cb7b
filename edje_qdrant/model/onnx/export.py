"""Export the joint encoder and its tokenizer to ONNX, for other runtimes and languages."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.files import hidden_folder
from edje_qdrant.model.onnx.graph import PortableJointEncoder
from edje_qdrant.model.onnx.names import TOKENIZER_FILE
from edje_qdrant.model.onnx.program import (
    describe,
    exported_program,
    require_exporter,
    require_onnx_path,
)
from edje_qdrant.model.onnx.tokenizer import portable_tokenizer

if TYPE_CHECKING:
    from edje_qdrant.model.edje import EDJEModel

__all__ = ["OnnxExport", "export_onnx"]

_INPUTS = ["input_ids", "attention_mask", "tokens"]
# Largest accepted difference to torch, as a share of the largest logit (or of 1).
_LARGEST_DIFFERENCE = {"float32": 1e-3, "int8": 0.25}


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """The written files.

    Attributes:
        path: The model's file.
        tokenizer: The tokenizer's file, beside it.
        precision: `float32`, or `int8` for the weights of linear layers.
        nbytes: Size of the model's file.
        outputs: `logits`, and `probabilities` if the model is calibrated.
        max_difference: Largest difference of a logit to torch's on random input.
    """

    path: str
    tokenizer: str
    precision: str
    nbytes: int
    outputs: tuple[str, ...]
    max_difference: float


def export_onnx(model: EDJEModel, out: str | Path, *, int8: bool = False) -> OnnxExport:
    """Export the joint encoder to ONNX, and its tokenizer to `tokenizer.json` beside it.

    Inputs: `input_ids` and `attention_mask`, `(batch, words)` int64, from the tokenizer, and
    `tokens`, `(batch, m, d_text)` float32. Outputs: `logits`, `(batch,)` float32, and, if the model
    is calibrated, `probabilities`, `(batch,)` float32. The file's metadata hold the contract
    (`edje.contract`), the calibration (`edje.calibration`) and the length of the longest caption
    (`edje.max_words`).

    Args:
        model: The model to export; it is not changed.
        out: The file, `.onnx`; replaced after the new one was checked against torch.
        int8: Quantize the weights of linear layers, and their input at run time: a quarter of the
            bytes, less exact.

    Raises:
        ConfigError: The joint encoder or its tokenizer is not supported, `out` does not end in
            `.onnx`, or its folder is missing or holds another model's tokenizer.
        CheckpointError: The file cannot be written, or its scores differ from torch's.
        MissingExtraError: The extra `onnx` is not installed.
    """
    path = Path(out).expanduser()
    require_onnx_path(path)
    require_exporter()
    tokenizer_path = path.with_name(TOKENIZER_FILE)
    tokenizer = portable_tokenizer(model.tokenizer, model.joint_encoder.max_caption_length)
    if tokenizer_path.exists() and tokenizer_path.read_bytes() != tokenizer:
        raise ConfigError(
            f"{tokenizer_path} belongs to another model, or another version wrote it; choose "
            f"another folder for {path.name}, or remove it"
        )
    precision = "int8" if int8 else "float32"
    form = PortableJointEncoder(
        copy.deepcopy(model.joint_encoder).to("cpu", torch.float32), model.calibration
    ).eval()
    proto = _quantized(_graph(form, model)) if int8 else _graph(form, model)
    _describe(proto, model, precision)
    try:
        with hidden_folder(path) as folder:
            part, tokenizer_part = folder / path.name, folder / TOKENIZER_FILE
            part.write_bytes(proto.SerializeToString())
            tokenizer_part.write_bytes(tokenizer)
            difference = _checked(part, model, precision)
            os.replace(tokenizer_part, tokenizer_path)
            os.replace(part, path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path} ({error}); choose a folder you may write to", path=str(path)
        ) from error
    return OnnxExport(
        str(path), str(tokenizer_path), precision, path.stat().st_size, _outputs(model), difference
    )


def _outputs(model: EDJEModel) -> tuple[str, ...]:
    return ("logits",) if model.calibration is None else ("logits", "probabilities")


def _graph(form: PortableJointEncoder, model: EDJEModel) -> Any:
    """Return the ONNX model."""
    batch = torch.export.Dim("batch")
    words = torch.export.Dim("words", max=model.joint_encoder.max_caption_length)
    return exported_program(
        form,
        _random_pairs(model, 3, 5, seed=0),
        inputs=_INPUTS,
        outputs=_outputs(model),
        dynamic_shapes=({0: batch, 1: words}, {0: batch, 1: words}, {0: batch}),
        what="joint encoder",
        path=str(model.name_or_path),
    )


def _quantized(proto: Any) -> Any:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Prevents a warning to pre-process the graph, which the exporter already did.
    proto.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory(prefix="edje-onnx-") as folder:
        file = Path(folder) / "int8.onnx"
        quantize_dynamic(
            proto,
            file,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul"],
        )
        return onnx.load(file)


def _describe(proto: Any, model: EDJEModel, precision: str) -> None:
    told = {
        "edje.max_words": str(model.joint_encoder.max_caption_length),
        "edje.precision": precision,
    }
    if model.calibration is not None:
        told["edje.calibration"] = json.dumps(asdict(model.calibration))
    describe(proto, model.contract(), told)


def _checked(path: Path, model: EDJEModel, precision: str) -> float:
    """Return the largest difference between the file's logits and torch's.

    Raises:
        CheckpointError: The difference is too large, or the file cannot be run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    reference = copy.deepcopy(model.joint_encoder).to("cpu", torch.float32).eval()
    longest = model.joint_encoder.max_caption_length
    difference, largest = 0.0, 1.0
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        for n, t in ((1, 2), (7, longest), (33, min(9, longest))):
            pairs = _random_pairs(model, n, t, seed=n)
            feeds = {name: pair.numpy() for name, pair in zip(_INPUTS, pairs, strict=True)}
            (found,) = session.run(["logits"], feeds)
            with torch.inference_mode():
                expected = reference(*pairs).numpy()
            if found.shape != expected.shape:
                raise ValueError(f"logits of shape {found.shape}, not {expected.shape}")
            largest = max(largest, float(np.abs(expected).max()))
            # np.maximum keeps a NaN; max() may lose it.
            difference = float(np.maximum(difference, np.abs(found - expected).max()))
    except Exception as error:  # onnxruntime raises its own error types
        raise CheckpointError(
            f"the exported file cannot be run ({error}); nothing was written", path=str(path)
        ) from error
    if not difference <= _LARGEST_DIFFERENCE[precision] * largest:
        raise CheckpointError(
            f"the exported file's logits differ from the model's by up to {difference:.3g}, of "
            f"logits up to {largest:.3g}; nothing was written"
            + ("; leave int8 out" if precision == "int8" else ""),
            path=str(path),
        )
    return difference


def _random_pairs(
    model: EDJEModel, n: int, t: int, *, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return random ids and mask `(n, t)` of several lengths, and tokens `(n, m, d_text)`."""
    random = torch.Generator().manual_seed(seed)
    vocabulary = int(model.joint_encoder.language_model.config.vocab_size)
    ids = torch.randint(vocabulary, (n, t), generator=random)
    lengths = torch.randint(min(2, t), t + 1, (n, 1), generator=random)
    lengths[0] = t
    tokens = torch.randn(n, model.config.num_tokens, model.config.token_dim, generator=random)
    return ids, (torch.arange(t) < lengths).long(), tokens
