"""How tokens become bytes and where they live: codecs, a side file, or the points' payload."""

from __future__ import annotations
