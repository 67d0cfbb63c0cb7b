"""Tolerances that follow from the number format and the magnitude of the values compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

#: Roundings one after another in a forward pass of the small models of these tests: a few layers
#: of some ten operations, each a sum of up to a hundred terms.
FORWARD = 1024
#: Roundings one after another in a cosine or a normalisation of the short vectors of these tests.
DOT = 64


def float32_slack(*values: Any, roundings: int = FORWARD) -> float:
    """Return how far two float32 computations of the same values may lie apart.

    Batch size, number of threads and the processor's instructions decide in which order sums are
    added, so equal results are not equal to the last digit. One rounding moves a value of magnitude
    `x` by `eps * x / 2` at most and by `0.29 * eps * x` in the root mean square. Errors of
    `roundings` such steps add up like a random walk: `0.29 * sqrt(roundings) * eps * x`, and
    `sqrt(2)` times that between two computations. Five standard deviations of it are

        2 * sqrt(roundings) * eps * x

    `x` is the largest magnitude among `values`, because a small value next to large ones is the
    difference of large terms. It is 1 at least: the terms of a cosine, and of a score after layer
    normalisation, have magnitude 1 even where their sum is near 0.

    For `FORWARD` this is `64 * eps * x`; `16 * eps * x` is the most that was seen, over several
    instruction sets and thread counts.

    Args:
        values: What is compared; numbers, sequences, arrays or tensors.
        roundings: Steps one after another.
    """
    return 2 * roundings**0.5 * float(np.finfo(np.float32).eps) * _magnitude(values)


def float16_slack(*values: Any) -> float:
    """Return how far values may lie apart if one of them was stored in float16 on the way.

    Where two float32 computations differ in their last digit, they can round to two neighbouring
    float16 numbers, `eps * x` apart. Tokens are stored so, and what is computed from them moves by
    as much relative to its magnitude: up to twice `eps`, with the rounding on both sides.
    """
    return 2 * float(np.finfo(np.float16).eps) * _magnitude(values)


def _magnitude(values: tuple[Any, ...]) -> float:
    arrays = [v.detach().cpu().float().numpy() if torch.is_tensor(v) else v for v in values]
    return max(1.0, *(float(np.abs(array).max(initial=0)) for array in map(np.asarray, arrays)))
