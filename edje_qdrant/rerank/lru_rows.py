"""LRU cache of rows of one width, in one tensor on a device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edje_qdrant.errors import ConfigError
from edje_qdrant.rerank.token_feed import to_device
from edje_qdrant.tokens.codecs import Codec

__all__ = ["Key", "LruRows"]

#: Identifies the tokens of an image, also against earlier tokens of the same image. One text, as
#: thousands are made for a search.
Key: TypeAlias = str

# The least recently used rows are looked up for this share of the capacity at a time.
_REPLACED_SHARE = 64


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
        self._slots: dict[Key, int] = {}
        self._keys: list[Key] = []  # of each slot
        self._used = np.zeros(capacity, np.int64)  # when each slot was used last
        self._clock = 0
        # Slots to replace, the next one at the end, and when each was used last.
        self._oldest: list[tuple[int, int]] = []

    @property
    def nbytes(self) -> int:
        """Return the size of the tensor in bytes."""
        return self._block.numel() * self._block.element_size()

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, keys: Sequence[Key]) -> NDArray[np.intp]:
        """Return the `(n,)` slots of keys; -1 where a key is not in the cache."""
        return np.fromiter(map(self._slots.get, keys, repeat(-1)), np.intp, len(keys))

    def use(self, slots: NDArray[np.intp]) -> None:
        """Mark `(n,)` slots as recently used, the last one most recently."""
        self._used[slots] = np.arange(self._clock + 1, self._clock + 1 + len(slots))
        self._clock += len(slots)

    def take(self, slots: NDArray[np.intp], *, pinned: bool = False) -> Tensor:
        """Return a copy of rows, `(n, width)`, and mark them as recently used.

        Args:
            slots: `n` slots from `find`; they may repeat.
            pinned: Gather rows of host memory into pinned memory, to be copied to a GPU.
        """
        self.use(slots)
        chosen = to_device(torch.from_numpy(slots), self._block.device)
        if not pinned or self._block.device.type != "cpu":
            return self._block.index_select(0, chosen)
        copy = torch.empty((len(slots), self.width), dtype=self._block.dtype, pin_memory=True)
        return torch.index_select(self._block, 0, chosen, out=copy)

    def put(self, keys: Sequence[Key], rows: Tensor) -> None:
        """Add `(n, width)` rows; only the first ones if there are more than the capacity."""
        new = [row for row, key in enumerate(keys[: len(self._block)]) if key not in self._slots]
        if not new:
            return
        slots = np.array([self._slot_for(keys[row]) for row in new], np.intp)
        device = self._block.device
        chosen = rows
        if len(new) < len(rows):
            chosen = rows.index_select(0, to_device(torch.tensor(new), device))
        self._block[to_device(torch.from_numpy(slots), device)] = chosen

    def _slot_for(self, key: Key) -> int:
        """Return the slot for a new key: a free one, or that of the least recently used key."""
        slot = len(self._keys)
        if slot < len(self._block):
            self._keys.append(key)
        else:
            slot = self._least_recently_used()
            del self._slots[self._keys[slot]]
            self._keys[slot] = key
        self._slots[key] = slot
        self._clock += 1
        self._used[slot] = self._clock
        return slot

    def _least_recently_used(self) -> int:
        while True:
            while self._oldest:
                slot, used = self._oldest.pop()
                if self._used[slot] == used:  # it was not used since it was looked up
                    return slot
            count = max(len(self._used) // _REPLACED_SHARE, 1)
            slots = np.argpartition(self._used, count - 1)[:count]
            slots = slots[np.argsort(-self._used[slots])]
            self._oldest = list(zip(slots.tolist(), self._used[slots].tolist(), strict=True))
