"""Steps of every export: torch's exporter without its chatter, and the file's metadata."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import CheckpointError, ConfigError, MissingExtraError
from edje_qdrant.files import kind_of
from edje_qdrant.logs import without_messages

__all__ = ["describe", "exported_program", "require_exporter", "require_onnx_path"]

# Supported by runtimes in other languages; a later version would save a few operations.
_OPSET = 18


def require_exporter() -> None:
    """Check that what an export needs is installed.

    Raises:
        MissingExtraError: It is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", "onnx-export") from error


def require_onnx_path(path: Path) -> None:
    """Check that a file can be written there.

    Raises:
        ConfigError: The name does not end in `.onnx`, or the folder is missing.
    """
    if path.suffix != ".onnx":
        raise ConfigError(f"name the file something.onnx, not {path.name}")
    if kind_of(path.parent, ConfigError) != "folder":
        raise ConfigError(f"there is no folder {path.parent}; create it, or choose another")


def exported_program(
    form: nn.Module,
    example: tuple[Tensor, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: Any,
    what: str,
    path: str,
) -> Any:
    """Return a module as an ONNX model.

    Args:
        form: The module.
        example: Its arguments.
        inputs: Names of the arguments.
        outputs: Names of the results.
        dynamic_shapes: As for `torch.onnx.export`.
        what: Name of the module in errors.
        path: Where its weights come from, for errors.

    Raises:
        CheckpointError: torch cannot export it.
    """
    try:
        with _quiet():
            program = torch.onnx.export(
                form,
                example,
                input_names=[*inputs],
                output_names=[*outputs],
                dynamic_shapes=dynamic_shapes,
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of any type
        raise CheckpointError(
            f"torch cannot export this {what} ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]}); see the exception's cause, or try "
            "another version of torch or onnxscript",
            path=path,
        ) from error
    assert program is not None  # not with dynamo=True
    proto = program.model_proto
    # These metadata hold paths of source files on this machine.
    for item in (*proto.graph.node, *proto.graph.input, *proto.graph.output):
        del item.metadata_props[:]
    # The recorded shapes of weights that the exporter transposed are wrong.
    del proto.graph.value_info[:]
    return proto


def describe(proto: Any, contract: TokenContract, told: Mapping[str, str]) -> None:
    """Replace an ONNX model's metadata: the contract of its model, and what else is told."""
    fields = contract.as_dict()
    if os.path.isabs(str(fields["model"])):
        fields["model"] = None  # a folder of this machine means nothing elsewhere
    del proto.metadata_props[:]
    for key, value in {"edje.contract": json.dumps(fields), **told}.items():
        proto.metadata_props.add(key=key, value=value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages of torch's exporter that do not concern users."""
    exporter = "torch.onnx._internal.exporter._registration"
    with warnings.catch_warnings(), without_messages(exporter, "torchvision is not installed"):
        warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"# The axis name: \w+ will not be used")
        yield
