"""Prometheus metrics of the service, read from /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edje_qdrant.search.results import SearchResult

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Metrics of one service, in a registry of its own.

    Args:
        waiting: Returns the number of requests that wait for the search thread.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "edje_requests_total",
            "Requests answered.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "edje_request_seconds",
            "Time to answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "edje_stage_seconds",
            "Time of one search by stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._degraded = Counter(
            "edje_degraded_total", "Searches answered with less than was asked.", registry=registry
        )
        self._scored = Counter(
            "edje_scored_pairs_total", "Pairs of text and image scored.", registry=registry
        )
        self._index_up = Gauge(
            "edje_index_up", "Whether the index answers, as far as is known.", registry=registry
        )
        self._index_up.set(1)
        self._index_failures = Counter(
            "edje_index_failures_total",
            "Requests that were not served because of the index.",
            ["error"],
            registry=registry,
        )
        self._changes = Counter(
            "edje_collection_changes_total",
            "Changes to another collection that the alias was moved to.",
            ["outcome"],
            registry=registry,
        )
        self._follows = Gauge(
            "edje_alias_followed",
            "Whether the collection served is the one that the alias stands for.",
            registry=registry,
        )
        self._follows.set(1)
        self._batches = Histogram(
            "edje_batch_searches",
            "Searches done together.",
            buckets=_SIZES,
            registry=registry,
        )
        self._ingested = Counter(
            "edje_ingested_pictures_total", "Images uploaded.", ["outcome"], registry=registry
        )
        self._sent_images = Counter(
            "edje_sent_images_total",
            "Images of rerank and embeddings requests that are not of the collection.",
            ["outcome"],
            registry=registry,
        )
        self.under_way = Gauge(
            "edje_requests_under_way", "Requests being answered.", registry=registry
        )
        queue = Gauge("edje_queue", "Requests that wait for the model.", registry=registry)
        queue.set_function(waiting)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def search(self, result: SearchResult, waited_ms: float) -> None:
        """Count one search."""
        stages = {**result.timings.as_dict(), "queue": waited_ms}
        del stages["total"]
        for stage, ms in stages.items():
            self._stages.labels(stage).observe(ms / 1000)
        self._scored.inc(result.scored)
        if result.degraded:
            self._degraded.inc()

    def index_up(self, up: bool) -> None:
        """Record whether the index answers."""
        self._index_up.set(up)

    def index_failure(self, error: str) -> None:
        """Count one request that was not served because of the index."""
        self._index_failures.labels(error).inc()

    def changed(self, outcome: str) -> None:
        """Count a change to another collection: `changed` or `failed`."""
        self._changes.labels(outcome).inc()

    def follows(self, follows: bool) -> None:
        """Record whether what is served is what the alias stands for."""
        self._follows.set(follows)

    def batch(self, size: int) -> None:
        """Record the size of a batch of searches."""
        self._batches.observe(size)

    def ingested(self, added: int, updated: int, skipped: int, failed: int) -> None:
        """Count uploaded images."""
        counts = {"added": added, "updated": updated, "skipped": skipped, "failed": failed}
        for outcome, count in counts.items():
            self._ingested.labels(outcome).inc(count)

    def sent_images(self, encoded: int, cached: int) -> None:
        """Count images that came with requests."""
        self._sent_images.labels("encoded").inc(encoded)
        self._sent_images.labels("cached").inc(cached)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
