"""LRU cache of rows of one width, in one tensor on a device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from edje_qdrant.errors import ConfigError
from edje_qdrant.tokens.codecs import Codec

__all__ = ["Key", "LruRows"]


class Key(NamedTuple):
    """Identify the tokens of an image, also against earlier tokens of the same image.

    Attributes:
        scope: Identity of the collection.
        image_id: Id of the image.
        where: Place and codec of the tokens, from the payload of the point.
        checksum: Checksum of the tokens, from the payload; None if it contains none.
    """

    scope: str
    image_id: str
    where: str
    checksum: str | None


class LruRows:
    """Hold rows by key; a full cache replaces the least recently used row. Not thread-safe.

    All rows are in one tensor, so that one operation of the device gathers any number of them.

    Args:
        codec: Codec of the rows.
        capacity: Maximum number of rows; 0 keeps nothing.
        width: Numbers in a row.
        dtype: Data type of the numbers.
        device: Device of the tensor.

    Raises:
        ConfigError: The device does not have that much memory.
    """

    def __init__(
        self, codec: Codec, capacity: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.codec, self.width = codec, width
        self.last_used = 0
        try:
            self._block = torch.empty((capacity, width), dtype=dtype, device=device)
        except (RuntimeError, MemoryError) as error:
            size = capacity * width * dtype.itemsize
            raise ConfigError(
                f"{device} does not have the {size:,} bytes that the token cache was given; give "
                "budget_bytes that fit beside the model"
            ) from error
        self._slots: OrderedDict[Key, int] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Return the size of the tensor in bytes."""
        return self._block.numel() * self._block.element_size()

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: Key) -> bool:
        return key in self._slots

    def take(self, keys: Sequence[Key], *, pinned: bool = False) -> Tensor:
        """Return a copy of rows, `(n, width)`, and mark them as recently used.

        Args:
            keys: `n` keys that the cache contains.
            pinned: Gather rows of host memory into pinned memory, to be copied to a GPU.
        """
        slots = [self._slots[key] for key in keys]
        for key in keys:
            self._slots.move_to_end(key)
        chosen = torch.tensor(slots, device=self._block.device)
        if not pinned or self._block.device.type != "cpu":
            return self._block.index_select(0, chosen)
        copy = torch.empty((len(slots), self.width), dtype=self._block.dtype, pin_memory=True)
        return torch.index_select(self._block, 0, chosen, out=copy)

    def put(self, keys: Sequence[Key], rows: Tensor) -> None:
        """Add `(n, width)` rows; only the first ones if there are more than the capacity."""
        new: list[int] = []
        slots: list[int] = []
        for row, key in enumerate(keys[: len(self._block)]):
            if key in self._slots:
                continue
            if len(self._slots) < len(self._block):
                slot = len(self._slots)
            else:
                _, slot = self._slots.popitem(last=False)
            self._slots[key] = slot
            new.append(row)
            slots.append(slot)
        if new:
            device = self._block.device
            chosen = rows if len(new) == len(rows) else rows[torch.tensor(new, device=device)]
            self._block[torch.tensor(slots, device=device)] = chosen
