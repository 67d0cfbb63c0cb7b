"""Modules that are imported when a test first uses them, not when the tests are collected."""

from __future__ import annotations

import importlib
from typing import Any


class Lazy:
    """A module, imported when something of it is first asked for.

    Each process that runs tests collects all of them, and would import each framework for a few
    tests that another process runs.
    """

    __test__ = False  # pytest asks all that a test module holds for it

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest asks for such names too, which would import the module
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)
