"""Integrated gradients from an image of one colour to an image, through the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from edje_qdrant.errors import ConfigError
from edje_qdrant.model.adapter import CompressedAdapter, LocalAdapter
from edje_qdrant.model.edje import EDJEModel

__all__ = ["TokenPath", "gradients"]

#: Intervals of the sum that approximates the integral.
_STEPS = 16


class TokenPath:
    """A straight path from a plain image's vision tokens to an image's, in equal steps.

    Create and use it within `gradients`.

    Args:
        adapter: Vision tokens -> tokens.
        plain: `(n, d_v)`, start of the path.
        vision_tokens: `(n, d_v)`, end of the path.

    Attributes:
        tokens: `(s, m, d_text)`, the adapter's output at every point of the path; compute the
            outputs for `relevance` from these.
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
        """Attribute the change of an output along the path to patches and to tokens.

        Args:
            outputs: `(s,)`, computed from `tokens`, each one from the tokens of its point alone.

        Returns:
            Relevance of patches `(n,)` and of tokens `(m,)`, float32; each sums to approximately
            the last output minus the first.
        """
        (by_tokens,) = torch.autograd.grad(outputs.sum(), self.tokens)  # (s, m, d_text)
        (by_places,) = torch.autograd.grad(
            self._made, self._places, grad_outputs=by_tokens, retain_graph=True
        )  # (s, n, d_v)
        change = self._change.float()
        patches = (_between(by_places.float()).mean(0) * change).sum(-1)
        steps = self.tokens.detach().float().diff(dim=0)  # (s - 1, m, d_text)
        return patches, (_between(by_tokens.float()) * steps).sum((0, 2))


def _between(values: Tensor) -> Tensor:
    """Return the means of neighbouring points: `(s, ...)` -> `(s - 1, ...)`."""
    return (values[1:] + values[:-1]) / 2


@contextmanager
def gradients(model: EDJEModel) -> Iterator[None]:
    """Enable gradients and disable dropout, regardless of the modes of modules and caller.

    Gradients are taken with respect to activations, never to parameters.

    Raises:
        ConfigError: The model was loaded in inference mode, which makes gradients impossible.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ConfigError(
            "the model was loaded under torch.inference_mode(), which makes gradients impossible; "
            "load it outside to explain its matches"
        )
    with model.inference(), torch.inference_mode(False), torch.enable_grad():
        yield
