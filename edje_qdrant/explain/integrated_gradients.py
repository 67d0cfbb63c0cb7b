"""Integrated gradients from an image of one colour to an image, through adapter and scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from edje_qdrant.errors import ConfigError
from edje_qdrant.model.adapter import CompressedAdapter, LocalAdapter
from edje_qdrant.model.edje import EDJEModel

__all__ = ["TokenPath", "gradients"]

#: The integral along the path is a sum over so many intervals.
_STEPS = 16


class TokenPath:
    """Lead in equal steps from a plain image's vision tokens to an image's.

    Made and used under `gradients`.

    Args:
        adapter: Vision tokens -> tokens.
        plain: `(n, d_v)`, where the path begins.
        vision_tokens: `(n, d_v)`, where it ends.

    Attributes:
        tokens: `(s, m, d_text)`, what the adapter makes of every place of the path; compute from
            these what `relevance` is asked of.
    """

    def __init__(
        self, adapter: CompressedAdapter | LocalAdapter, plain: Tensor, vision_tokens: Tensor
    ) -> None:
        self._change = vision_tokens - plain
        share = torch.linspace(0, 1, _STEPS + 1, device=plain.device, dtype=plain.dtype)
        self._places = (plain + share[:, None, None] * self._change).requires_grad_()  # (s, n, d_v)
        self._made = adapter(self._places)
        self.tokens = self._made.detach().requires_grad_()

    def relevance(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Share an output's growth along the path out over patches and over tokens.

        Args:
            outputs: `(s,)`, computed from `tokens`, each place from its own tokens alone.

        Returns:
            `(n,)` and `(m,)` float32; either sums to the last output less the first, nearly.
        """
        (by_tokens,) = torch.autograd.grad(outputs.sum(), self.tokens)
        (by_places,) = torch.autograd.grad(
            self._made, self._places, grad_outputs=by_tokens, retain_graph=True
        )
        change = self._change.float()
        patches = (_between(by_places.float()).mean(0) * change).sum(-1)
        steps = self.tokens.detach().float().diff(dim=0)  # (s - 1, m, d_text)
        return patches, (_between(by_tokens.float()) * steps).sum((0, 2))


def _between(values: Tensor) -> Tensor:
    """Return the means of neighbours along the path."""
    return (values[1:] + values[:-1]) / 2


@contextmanager
def gradients(model: EDJEModel) -> Iterator[None]:
    """Compute with gradients and without dropout, whatever the modules and the caller are set to.

    Gradients are taken to what goes through the model and never reach its parameters.

    Raises:
        ConfigError: The model was loaded in inference mode, which rules gradients out for good.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ConfigError(
            "the model was loaded under torch.inference_mode(), which rules gradients out; load "
            "it outside of that to explain its matches"
        )
    with model.inference(), torch.inference_mode(False), torch.enable_grad():
        yield
