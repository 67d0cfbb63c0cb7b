"""Pairs for a joint encoder, and their scores by its training form."""

from __future__ import annotations

import torch
from tiny import CLS, SEP
from torch import Tensor

from edje_qdrant.model import JointEncoder


def captions(n: int, length: int) -> Tensor:
    words = 8 + (torch.arange(length) * 5 + torch.arange(n)[:, None]) % 12
    return torch.cat([torch.full((n, 1), CLS), words, torch.full((n, 1), SEP)], dim=1)


def plain(joint_encoder: JointEncoder, groups: list[Tensor], tokens: Tensor) -> Tensor:
    """Score by the training form, each group by itself."""
    parts = tokens.split([len(ids) for ids in groups])
    with torch.inference_mode():
        return torch.cat(
            [
                joint_encoder(ids, torch.ones_like(ids), part)
                for ids, part in zip(groups, parts, strict=True)
            ]
        )
