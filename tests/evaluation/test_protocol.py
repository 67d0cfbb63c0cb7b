from __future__ import annotations

import pytest

from edje_qdrant.data.annotations import Annotation
from edje_qdrant.errors import ConfigError
from edje_qdrant.evaluation.protocol import PROTOCOLS, choose

KARPATHY = [
    Annotation(f"/{part}{n}.jpg", ("a",), f"d.json:{n}", part)
    for n, part in enumerate(["train", "restval", "val", "test", "test"])
]
PLAIN = [Annotation("/a.jpg", ("a",), "d.jsonl:1")]


def test_karpathys_pool_is_one_split_test_by_default() -> None:
    pool, asked, split = choose(KARPATHY, PROTOCOLS["karpathy"], None)
    assert ([a.part for a in pool], asked, split) == (["test", "test"], None, "test")
    pool, asked, split = choose(KARPATHY, PROTOCOLS["karpathy"], "train")
    assert ([a.part for a in pool], asked, split) == (["train", "restval"], None, "train")


def test_the_full_pool_is_everything_and_asks_everything_or_one_split() -> None:
    assert choose(KARPATHY, PROTOCOLS["full"], None) == (KARPATHY, None, None)
    pool, asked, split = choose(KARPATHY, PROTOCOLS["full"], "val")
    assert pool == KARPATHY
    assert asked == [KARPATHY[2]]
    assert split == "val"


@pytest.mark.parametrize("name", ["karpathy", "full"])
def test_files_without_splits_are_one_pool(name: str) -> None:
    assert choose(PLAIN, PROTOCOLS[name], None) == (PLAIN, None, None)
    with pytest.raises(ConfigError, match="they have none"):
        choose(PLAIN, PROTOCOLS[name], "test")


def test_a_split_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="there are restval, test, train, val"):
        choose(KARPATHY, PROTOCOLS["karpathy"], "dev")
