"""Token codecs and token stores: side files, or the points' payload."""

from __future__ import annotations
