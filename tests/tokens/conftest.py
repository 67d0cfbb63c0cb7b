from __future__ import annotations

import uuid
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from edje_qdrant.contract import TokenContract

MakeTokens = Callable[..., NDArray[np.float16]]


@pytest.fixture
def contract() -> TokenContract:
    return TokenContract(
        encoder="tiny",
        encoder_revision="e0",
        preprocessing="p0",
        embedding_dim=8,
        adapter_hash="a0",
        num_tokens=3,
        token_dim=7,  # 42 bytes an image: not a whole number of 8-byte words
    )


@pytest.fixture
def make_tokens(contract: TokenContract) -> MakeTokens:
    def make(n: int, seed: int = 0) -> NDArray[np.float16]:
        rng = np.random.default_rng(seed)
        shape = (n, contract.num_tokens, contract.token_dim)
        return rng.standard_normal(shape).astype(np.float16)

    return make


@pytest.fixture
def make_ids() -> Callable[..., list[str]]:
    def make(n: int, start: int = 0) -> list[str]:
        return [str(uuid.UUID(int=start + i + 1)) for i in range(n)]

    return make
