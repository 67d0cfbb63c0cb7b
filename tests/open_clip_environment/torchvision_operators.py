"""Let torchvision's CUDA wheel be imported beside a CPU build of torch; for tests alone.

The wheel's compiled operators do not load there, and torchvision stops at its import because
`torchvision::nms` is missing. Declared here, without an implementation, two of them let the import
pass: open_clip uses torchvision's picture transforms alone, which are plain Python.
`make test-open-clip` loads this as a pytest plugin, before anything imports transformers.
"""

from __future__ import annotations

import warnings

import torch

with warnings.catch_warnings():
    # torchvision warns of its compiled image readers, which nothing here reads with.
    warnings.simplefilter("ignore")
    try:
        import torchvision
    except RuntimeError:
        LIBRARY = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

__all__ = ["torchvision"]
