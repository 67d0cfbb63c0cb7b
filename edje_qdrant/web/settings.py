"""What the service may do, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from edje_qdrant.errors import ConfigError

__all__ = ["UPLOADS", "ServiceSettings", "allowed_hosts", "check_exposure"]

#: Folder below the images' one where uploaded images are kept.
UPLOADS = "uploads"

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """Hold the limits of a service; the defaults suit a small machine.

    Attributes:
        images: The folder whose images may be served; None serves none.
        ingest: Whether images may be added; they are kept in `uploads` below `images`.
        api_keys: Keys of which a request must bring one; none asks for no key.
        cors_origins: Origins whose pages may call the service; none by default.
        allowed_hosts: Names by which the service may be called; None for any.
        max_body_bytes: Of a JSON body.
        max_upload_bytes: Of a body with images.
        max_files: Images in one ingest.
        max_pixels: Of an uploaded image, and of one to be shown.
        max_top_k: Hits of one page.
        max_candidates: Images of the first stage that one search may rerank.
        max_text: Characters of a query.
        timeout: Seconds until a request is answered, one way or the other.
        max_batch: Searches done together.
        batch_wait_ms: How long the first of them waits for others.
        max_waiting: Searches that may wait; more are turned away.
        thumbnail_bytes: Of memory for thumbnails.
    """

    pictures: Path | None = None
    ingest: bool = False
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = None
    max_body_bytes: int = 1 << 20
    max_upload_bytes: int = 32 << 20
    max_files: int = 16
    max_pixels: int = 50_000_000
    max_top_k: int = 100
    max_candidates: int = 1000
    max_text: int = 1000
    timeout: float = 30.0
    max_batch: int = 16
    batch_wait_ms: float = 2.0
    max_waiting: int = 128
    thumbnail_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("max_") and value < 1:
                raise ConfigError(f"{field.name} is {value!r}; give 1 or more")
        if not self.timeout > 0:
            raise ConfigError(f"timeout is {self.timeout!r}; give seconds above 0")
        if any(len(key) < 16 for key in self.api_keys):
            raise ConfigError("an API key has fewer than 16 characters; make a longer one")
        if self.pictures is not None and not self.pictures.is_dir():
            raise ConfigError(f"--images {self.pictures} is no folder; give the images' folder")
        if self.ingest and self.pictures is None:
            raise ConfigError("uploaded images need a place: say --images FOLDER with --ingest")


def check_exposure(host: str, api_keys: Sequence[str], *, without_key: bool) -> None:
    """Refuse to serve a network without a key, unless that is asked for.

    Raises:
        ConfigError: Others could call the service, and there is no key.
    """
    if host not in _LOOPBACK and not api_keys and not without_key:
        raise ConfigError(
            f"on {host} others can reach the service; set a key in EDJE_QDRANT_SERVICE_KEY, or say "
            "--without-key if everybody may use it"
        )


def allowed_hosts(host: str, named: Sequence[str]) -> tuple[str, ...] | None:
    """Return by which names the service may be called.

    On the machine itself only by the machine's own: else a page from elsewhere whose name is made
    to point here could read what the service shows.
    """
    if host in _LOOPBACK:
        return (*_LOOPBACK, *named)
    return tuple(named) or None
