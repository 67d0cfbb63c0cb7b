"""Rows of one width in one block of a device's memory, the least recently used replaced first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from edje_qdrant.errors import ConfigError
from edje_qdrant.tokens.codecs import Codec

__all__ = ["Key", "Rows"]


class Key(NamedTuple):
    """Tell an image's tokens from all others', earlier ones of the same image among them.

    Attributes:
        scope: The collection's.
        image_id: The image's.
        where: What its point says of where they are, and in which codec.
        checksum: What its point says of the bytes; None where it does not.
    """

    scope: str
    image_id: str
    where: str
    checksum: str | None


class Rows:
    """Hold rows by key; the caller keeps threads apart.

    One block, so that any number of rows is gathered by one operation of the device.

    Args:
        codec: Whose codes the rows are.
        capacity: Rows at most; 0 keeps nothing.
        width: Numbers of a row.
        dtype: Theirs.
        device: Where.

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
        """Return the bytes of the block."""
        return self._block.numel() * self._block.element_size()

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: Key) -> bool:
        return key in self._slots

    def take(self, keys: Sequence[Key], *, pinned: bool = False) -> Tensor:
        """Return a copy of rows that are here, `(n, width)`, which are the latest used by that.

        Args:
            keys: Whose.
            pinned: Whether the copy goes on to a GPU: rows of host memory are gathered straight
                into pinned memory.
        """
        slots = []
        for key in keys:
            slots.append(self._slots[key])
            self._slots.move_to_end(key)
        chosen = torch.tensor(slots, device=self._block.device)
        if not pinned or self._block.device.type != "cpu":
            return self._block.index_select(0, chosen)
        shape = (len(slots), self.width)
        copy = torch.empty(shape, dtype=self._block.dtype, pin_memory=True)
        return torch.index_select(self._block, 0, chosen, out=copy)

    def put(self, keys: Sequence[Key], rows: Tensor) -> None:
        """Keep `(n, width)` rows, the first ones if there are more than fit in."""
        new: list[int] = []
        slots: list[int] = []
        for at, key in enumerate(keys[: len(self._block)]):
            if key in self._slots:
                continue
            if len(self._slots) < len(self._block):
                slot = len(self._slots)
            else:
                _, slot = self._slots.popitem(last=False)
            self._slots[key] = slot
            new.append(at)
            slots.append(slot)
        if new:
            device = self._block.device
            chosen = rows if len(new) == len(rows) else rows[torch.tensor(new, device=device)]
            self._block[torch.tensor(slots, device=device)] = chosen
