"""The version; a module of its own, so that rooms can name it without importing the root."""

from __future__ import annotations

__all__ = ["LOWEST", "__version__"]

__version__ = "0.1.0"

# Older versions of these packages are known to fail; pyproject.toml has the same bounds.
LOWEST = {"qdrant-client": "1.20", "transformers": "5.3"}
