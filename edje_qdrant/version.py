"""The version; a module of its own, so that rooms can name it without importing the root."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
