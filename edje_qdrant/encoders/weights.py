"""Name a module's weights by a hash that survives a change of device or precision."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["HashedModule", "hash_weights"]


def hash_weights(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, shapes and float32 values, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


class HashedModule(nn.Module):
    """Know the hash of its own weights as they were before any cast.

    A model loaded in bfloat16 on a GPU and the same one loaded in float32 on a CPU must name their
    weights alike, so moving and casting keep the hash, while an optimizer's step, `load_state_dict`
    and other in-place writes void it. Writes through `.data` go unseen.
    """

    _known: tuple[str, int] | None = None

    @property
    def weights_hash(self) -> str:
        """Return the hash, computing it anew if the weights were written to since."""
        version = self._weights_version()
        if self._known is None or self._known[1] != version:
            self._known = (hash_weights(self.state_dict()), version)
        return self._known[0]

    def keep_weights_hash(self, value: str) -> None:
        """Take `value` for the hash of the weights as they are now."""
        self._known = (value, self._weights_version())

    def _weights_version(self) -> int:
        return hash(
            tuple((id(p), 0 if p.is_inference() else p._version) for p in self.parameters())
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # torch's one door for .to(), .half(), .cuda() and the like.
        known = self._known
        valid = known is not None and known[1] == self._weights_version()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if known is not None and valid:
            self.keep_weights_hash(known[0])
        return self
