from __future__ import annotations

import json

import pytest

from edje_qdrant.errors import ConfigError
from edje_qdrant.model import EDJEConfig

GOOD = {
    "encoder": "tiny",
    "adapter": "compressed",
    "num_tokens": 5,
    "vision_hidden_size": 32,
    "token_dim": 36,
    "embedding_dim": 32,
}


def test_json_round_trip() -> None:
    config = EDJEConfig.from_dict({**GOOD, "adapter": "local", "max_caption_tokens": 20})
    assert EDJEConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert config.max_positions == 20 + 3 + 5
    assert EDJEConfig.from_dict(GOOD).max_positions == 64 + 5


@pytest.mark.parametrize(
    "change",
    [
        {"adapter": "global"},
        {"num_tokens": 0},
        {"num_tokens": -1},
        {"num_tokens": 2.5},
        {"token_dim": True},
        {"embedding_dim": "32"},
        {"encoder": 3},
        {"separate_token_tower": 1},
        {"format_version": 2},
        {"colour": "red"},
    ],
    ids=str,
)
def test_nonsense_is_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        EDJEConfig.from_dict({**GOOD, **change})


@pytest.mark.parametrize("field", GOOD)
def test_missing_field_is_named(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        EDJEConfig.from_dict({k: v for k, v in GOOD.items() if k != field})
