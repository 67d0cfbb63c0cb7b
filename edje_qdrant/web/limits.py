"""The service's limits in its OpenAPI document."""

from __future__ import annotations

from typing import Any

from edje_qdrant.web.settings import ServiceSettings

__all__ = ["with_limits"]

# Keywords of JSON Schema by property of a request, and the setting that each has as its value.
_LIMITS = {
    "text": ("maxLength", "max_text"),
    "query": ("maxLength", "max_text"),
    "top_k": ("maximum", "max_top_k"),
    "num_candidates": ("maximum", "max_candidates"),
    "documents": ("maxItems", "max_candidates"),
    "texts": ("maxItems", "max_candidates"),
    "files": ("maxItems", "max_files"),
    "image_ids": ("maxItems", "max_zip_files"),
}
_REQUESTS = ("Request", "Body_")


def with_limits(document: dict[str, Any], settings: ServiceSettings) -> dict[str, Any]:
    """Write the limits of this service into the requests of an OpenAPI document, in place."""
    for name, schema in document["components"]["schemas"].items():
        if not any(word in name for word in _REQUESTS):
            continue
        for field, described in schema.get("properties", {}).items():
            if field in _LIMITS:
                keyword, setting = _LIMITS[field]
                limit = getattr(settings, setting)
                for one in (described, *described.get("anyOf", ())):
                    missing = keyword == "maxItems" and one.get("type") == "array"
                    if keyword in one or missing:
                        one[keyword] = min(limit, one.get(keyword, limit))
    return document
