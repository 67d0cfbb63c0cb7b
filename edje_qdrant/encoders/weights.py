"""Hashes of a module's weights that do not change with device or precision."""

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
    """Hash names, shapes and float32 values: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


class HashedModule(nn.Module):
    """A module that caches the hash of its weights as they were before any cast.

    The same model in bfloat16 on a GPU and in float32 on a CPU must have the same hash. So moving
    and casting keep it, while an optimiser step, `load_state_dict` and other in-place writes
    discard it. Writes through `.data` are not detected.
    """

    _known: tuple[str, int] | None = None

    @property
    def weights_hash(self) -> str:
        """Return the hash; it is computed again if the weights were written since."""
        version = self._weights_version()
        if self._known is None or self._known[1] != version:
            self._known = (hash_weights(self.state_dict()), version)
        return self._known[0]

    def keep_weights_hash(self, value: str) -> None:
        """Set the hash of the current weights."""
        self._known = (value, self._weights_version())

    def _weights_version(self) -> int:
        return hash(
            tuple((id(p), 0 if p.is_inference() else p._version) for p in self.parameters())
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # torch calls this for .to(), .half(), .cuda() and the like.
        known = self._known
        valid = known is not None and known[1] == self._weights_version()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if known is not None and valid:
            self.keep_weights_hash(known[0])
        return self
