"""The modules of a network as a flat list that is kept between calls."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

__all__ = ["FlatModules"]


_Children = dict[str, nn.Module | None]


class _Listed(NamedTuple):
    """A walk: the roots, all modules, and of each its children, as torch's dict and copied."""

    roots: tuple[nn.Module, ...]
    modules: list[nn.Module]
    children: list[tuple[_Children, _Children]]


class FlatModules:
    """List modules and all modules below them without walking the tree at each call.

    `Module.modules()` takes milliseconds for a large network. Here the tree is walked at the first
    call, and again after a module in it was added, removed or replaced.

    Examples:
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> flat = FlatModules()
        >>> len(flat.below(network))
        3
        >>> network[1] = nn.Sequential(nn.ReLU(), nn.Linear(2, 1))
        >>> len(flat.below(network))
        5
    """

    def __init__(self) -> None:
        self._listed = _Listed((), [], [])

    def below(self, *roots: nn.Module) -> list[nn.Module]:
        """Return the roots and all modules below them; treat the list as read-only."""
        listed = self._listed
        if roots != listed.roots or any(now != then for now, then in listed.children):
            modules = [module for root in roots for module in root.modules()]
            children = [(module._modules, dict(module._modules)) for module in modules]
            # Replaced as a whole, as other threads may read it.
            listed = self._listed = _Listed(roots, modules, children)
        return listed.modules
