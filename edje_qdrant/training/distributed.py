"""Collective operations of distributed training; with one process they do nothing."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather", "gather_padded", "rank", "total", "world_size"]


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(tensor: Tensor) -> Tensor:
    """Concatenate the processes' tensors of equal shape in order of rank.

    In the backward pass each part receives the gradients of all processes' losses, so that the sum
    of the losses has the gradient that a single process would compute.

    Args:
        tensor: `(b, ...)`.

    Returns:
        `(world * b, ...)`.
    """
    if world_size() == 1:
        return tensor
    return cast("Tensor", _Gather.apply(tensor))  # type: ignore[no-untyped-call]


def gather_padded(tensor: Tensor, value: int) -> Tensor:
    """Gather `(b, t)` tensors whose `t` differs by process, padded on the right with `value`."""
    if world_size() == 1:
        return tensor
    longest = torch.tensor(tensor.shape[1], device=tensor.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return gather(torch.nn.functional.pad(tensor, (0, int(longest) - tensor.shape[1]), value=value))


def total(count: int, device: torch.device) -> int:
    """Return the sum of `count` over all processes."""
    if world_size() == 1:
        return count
    summed = torch.tensor(count, device=device)
    dist.all_reduce(summed)
    return int(summed)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.rows : (rank() + 1) * ctx.rows]
