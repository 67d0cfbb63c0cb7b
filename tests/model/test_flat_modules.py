from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from torch import nn

from edje_qdrant.model.flat_modules import FlatModules


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))


def remove(root: nn.Sequential) -> None:
    del root[0]


def empty(root: nn.Sequential) -> None:
    root[1] = nn.Sequential()


@pytest.mark.parametrize(
    "change",
    [
        lambda root: root.append(nn.ReLU()),
        lambda root: root[0].register_module("added", nn.ReLU()),
        lambda root: root[1].__setitem__(1, nn.Linear(2, 2)),
        lambda root: root[1].__setitem__(0, None),
        remove,
        empty,
    ],
    ids=["added", "added to a leaf", "replaced", "none", "removed", "emptied"],
)
def test_the_list_follows_changes_of_the_tree(change: Callable[[nn.Sequential], None]) -> None:
    root, flat = network(), FlatModules()
    assert flat.below(root) == [*root.modules()]
    change(root)
    assert flat.below(root) == [*root.modules()]


def test_the_list_is_kept_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    root, flat = network(), FlatModules()
    expected = [*flat.below(root)]
    monkeypatch.delattr(nn.Module, "modules")
    assert flat.below(root) == expected


def test_other_roots_give_another_list() -> None:
    root, flat = network(), FlatModules()
    flat.below(root)
    assert flat.below(root[0]) == [root[0]]
    assert flat.below(root[0], root[1]) == [root[0], *root[1].modules()]


def test_a_copy_lists_its_own_modules() -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.flat = network(), FlatModules()

    owner = Owner()
    owner.flat.below(owner.part)
    twin = copy.deepcopy(owner)
    assert twin.flat.below(twin.part) == [*twin.part.modules()]
    assert owner.flat.below(owner.part) == [*owner.part.modules()]
