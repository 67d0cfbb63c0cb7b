"""EDJE: stage-1 encoder, adapter and joint encoder as one model."""

from __future__ import annotations

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
