"""Settings of the service: folder, keys, limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from edje_qdrant.checks import check_kind, check_number, check_strings
from edje_qdrant.errors import ConfigError
from edje_qdrant.files import kind_of
from edje_qdrant.images import DECODE_MEMORY
from edje_qdrant.ingest.file_fields import FileFields
from edje_qdrant.ingest.watch import check_watched
from edje_qdrant.sources.parts import interval_of
from edje_qdrant.sources.uris import check_prefix
from edje_qdrant.web.image_fetch import FetchHost, fetch_host

__all__ = ["UPLOADS", "ServiceSettings", "allowed_hosts", "check_exposure"]

#: Subfolder of the image folder for uploaded images.
UPLOADS = "uploads"

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """Settings and limits of a service; the defaults suit a small machine.

    Attributes:
        images: Folder whose images may be served; None serves none.
        image_addresses: Addresses below which images may be served, too: `s3://bucket/photos/`.
        ingest: Whether images may be added; they are stored in `images`/uploads.
        watch: Whether the collection is kept the same as `images`; see `FolderWatch`.
        frames_every: Keep the frames of films, so far apart, too, if it is watched.
        pdf_pages: Keep the pages of PDF documents, too, if it is watched.
        file_fields: The fields of payloads that are taken from the files that are watched.
        api_keys: Keys of which a request must send one; empty for no key.
        cors_origins: Origins whose pages may call the service.
        allowed_hosts: Host names by which the service may be called; None for any.
        max_body_bytes: Size of a JSON body.
        max_upload_bytes: Size of a body with images.
        max_files: Images in one ingest request.
        max_zip_files: Images in one zip file.
        max_zip_bytes: Size of the files in one zip file.
        max_pixels: Pixels of an uploaded or displayed image.
        decode_memory: Bytes of memory for all images that are being decoded.
        decode_seconds: Time limit of decoding one image.
        max_top_k: Hits of one page.
        max_candidates: First-stage images that one search may rerank.
        max_text: Characters of a query.
        timeout: Seconds until a request is answered or fails.
        max_batch: Searches in one batch.
        batch_wait_ms: How long the first search of a batch waits for others.
        max_waiting: Searches that may wait; further ones are rejected.
        thumbnail_bytes: Memory of the thumbnail cache.
        max_images: Images that are not of the collection, in one rerank or embeddings request.
        image_cache_bytes: Memory of the cache of their encodings.
        allow_fetch: Hosts that images may be fetched from, as `--allow-fetch` takes them; none
            by default.
        fetch_bytes: Size of a fetched image.
        fetch_seconds: Time limit of fetching one image.
    """

    images: Path | None = None
    image_addresses: tuple[str, ...] = ()
    ingest: bool = False
    watch: bool = False
    frames_every: str | float | None = None
    pdf_pages: bool = False
    file_fields: FileFields = FileFields()  # noqa: RUF009 - frozen
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = None
    max_body_bytes: int = 1 << 20
    max_upload_bytes: int = 32 << 20
    max_files: int = 16
    max_zip_files: int = 1000
    max_zip_bytes: int = 2 << 30
    max_pixels: int = 50_000_000
    decode_memory: int = DECODE_MEMORY
    decode_seconds: float = 10.0
    max_top_k: int = 100
    max_candidates: int = 1000
    max_text: int = 1000
    timeout: float = 30.0
    max_batch: int = 16
    batch_wait_ms: float = 2.0
    max_waiting: int = 128
    thumbnail_bytes: int = 64 << 20
    max_images: int = 100
    image_cache_bytes: int = 128 << 20
    allow_fetch: tuple[str, ...] = ()
    fetch_bytes: int = 16 << 20
    fetch_seconds: float = 10.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name.startswith("max_"):
                check_number(one.name, value)
        check_number("decode_memory", self.decode_memory)
        check_number("thumbnail_bytes", self.thumbnail_bytes, least=0)
        check_number("image_cache_bytes", self.image_cache_bytes, least=0)
        check_number("fetch_bytes", self.fetch_bytes)
        for name in ("decode_seconds", "fetch_seconds", "timeout", "batch_wait_ms"):
            value = getattr(self, name)
            check_kind(name, value, (int, float), "a number")
            if name != "batch_wait_ms" and not value > 0:
                raise ConfigError(f"{name} is {value!r}; give seconds above 0")
        check_strings("api_keys", self.api_keys)
        check_strings("cors_origins", self.cors_origins)
        check_strings("allow_fetch", self.allow_fetch)
        check_strings("image_addresses", self.image_addresses)
        for address in self.image_addresses:
            check_prefix(address)
        _ = self.fetch_hosts
        if self.images is not None:
            check_kind("images", self.images, Path, "a Path")
        if any(len(key) < 16 for key in self.api_keys):
            raise ConfigError("an API key has fewer than 16 characters; make a longer one")
        if self.images is not None and kind_of(self.images, ConfigError) != "folder":
            raise ConfigError(
                f"--images {self.images} is not a folder; give the folder of the images"
            )
        if self.ingest and self.images is None:
            raise ConfigError(
                "--ingest needs a folder for uploaded images; give --images FOLDER too"
            )
        if self.watch and self.images is None:
            raise ConfigError("--watch needs a folder to watch; give --images FOLDER too")
        if self.watch and self.images is not None:
            check_watched(self.images)
        if self.frames_every is not None:
            interval_of(self.frames_every)
        parts = self.frames_every is not None or self.pdf_pages
        if not self.watch and (parts or self.file_fields != FileFields()):
            raise ConfigError(
                "--frames-every, --pdf-pages, --gps and --no-exif say what is stored of the files "
                "that are watched; give --watch too"
            )

    @property
    def fetch_hosts(self) -> tuple[FetchHost, ...]:
        """Return the hosts that images may be fetched from.

        Raises:
            ConfigError: One is not a host.
        """
        return tuple(fetch_host(text) for text in self.allow_fetch)


def check_exposure(host: str, api_keys: Sequence[str], *, without_key: bool) -> None:
    """Check that a service on a network address has a key, or that none is wanted.

    Raises:
        ConfigError: The address is not local, and there is no key.
    """
    if host not in _LOOPBACK and not api_keys and not without_key:
        raise ConfigError(
            f"on {host} others can reach the service; set a key in EDJE_QDRANT_SERVICE_KEY, or "
            "give "
            "--without-key to serve without one"
        )


def allowed_hosts(host: str, named: Sequence[str]) -> tuple[str, ...] | None:
    """Return the host names by which the service may be called; None for any.

    On a loopback address only the machine's own names: this prevents DNS rebinding, where a foreign
    page's name is made to resolve to this machine.
    """
    if host in _LOOPBACK:
        return (*_LOOPBACK, *named)
    return tuple(named) or None
