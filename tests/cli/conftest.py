from __future__ import annotations

from collections.abc import Iterator

import pytest
from index_stand_in import StandIn


@pytest.fixture(autouse=True)
def no_server_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDJE_QDRANT_URL", raising=False)
    monkeypatch.delenv("EDJE_QDRANT_API_KEY", raising=False)


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server
