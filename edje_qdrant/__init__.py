"""Find pictures by text in two stages: vector search, then a joint encoder over stored tokens."""

from __future__ import annotations

__version__ = "0.1.0"
