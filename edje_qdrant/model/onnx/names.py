"""Names of the files in a folder of exported models."""

from __future__ import annotations

__all__ = ["JOINT_FILE", "TEXT_FILE", "TEXT_TOKENIZER_FILE", "TOKENIZER_FILE"]

#: The joint encoder, where a folder is named rather than a file.
JOINT_FILE = "joint.onnx"

#: The joint encoder's tokenizer, beside it.
TOKENIZER_FILE = "tokenizer.json"

#: The text encoder of the first stage.
TEXT_FILE = "text_encoder.onnx"

#: Its tokenizer, beside it.
TEXT_TOKENIZER_FILE = "text_tokenizer.json"
