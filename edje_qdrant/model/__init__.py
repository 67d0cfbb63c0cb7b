"""EDJE: stage-1 encoder, adapter and joint encoder as one model.

The names below are loaded when they are first used, so that what needs no torch, such as
`model.calibration` and `model.onnx.running`, can be imported without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edje_qdrant.model.adapter import CompressedAdapter, LocalAdapter
    from edje_qdrant.model.config import EDJEConfig
    from edje_qdrant.model.edje import EDJEModel
    from edje_qdrant.model.inference.fast_joint_encoder import FastJointEncoder
    from edje_qdrant.model.inference.precision import Precision
    from edje_qdrant.model.joint_encoder import JointEncoder, extend_positions
    from edje_qdrant.model.split_models import EDJEModelForIndexing, EDJEModelForRanking

__all__ = [
    "CompressedAdapter",
    "EDJEConfig",
    "EDJEModel",
    "EDJEModelForIndexing",
    "EDJEModelForRanking",
    "FastJointEncoder",
    "JointEncoder",
    "LocalAdapter",
    "Precision",
    "extend_positions",
]

_HOMES = {
    "CompressedAdapter": "adapter",
    "EDJEConfig": "config",
    "EDJEModel": "edje",
    "EDJEModelForIndexing": "split_models",
    "EDJEModelForRanking": "split_models",
    "FastJointEncoder": "inference.fast_joint_encoder",
    "JointEncoder": "joint_encoder",
    "LocalAdapter": "adapter",
    "Precision": "inference.precision",
    "extend_positions": "joint_encoder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
