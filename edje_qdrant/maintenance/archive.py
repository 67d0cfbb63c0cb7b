"""Export of a collection to one file, and import from it.

An archive is a plain tar file with these members: `archive-CHECKSUM.json` (format, contract,
codec); `codec-CHECKSUM.safetensors`, if the codec has a codebook; `part00000-CHECKSUM.safetensors`
and so on, each with at most a few hundred images; `end-CHECKSUM.json` (numbers of parts and
images). Each name contains the XXH3 of the member's bytes, so damage and truncation are detected
before a member is used.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import load, save
from tqdm import tqdm

from edje_qdrant.checks import check_seconds
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import (
    CollectionExistsError,
    CollectionNotFoundError,
    ConfigError,
    ContractMismatchError,
    StoreError,
    TokensCorruptError,
)
from edje_qdrant.files import kind_of, new_file, os_errors_as_store_errors
from edje_qdrant.index import WORDS_KEY, TextFields, check_indexes
from edje_qdrant.maintenance.arguments import check_collections, check_flags, check_path
from edje_qdrant.maintenance.copy import Part, add_parts, stored_parts, take_text_fields
from edje_qdrant.maintenance.reports import CopyReport
from edje_qdrant.tokens.codecs import Codec, codec_for

__all__ = ["export_collection", "import_collection"]

# Options of a new collection, and of the connection to a server.
_CREATION_ONLY = frozenset(
    {"tokens", "engine", "payload_indexes", "qdrant", "text_fields", "text_language"}
)
_OPTIONS = _CREATION_ONLY | {
    "tokens_folder",
    "api_key",
    "prefer_grpc",
    "grpc_port",
    "timeout",
    "compress_reads",
}

_MAGIC, _FORMAT = "edje-qdrant archive", 1


def export_collection(
    collection: ImageCollection, path: str | Path, *, progress: bool = False, wait: float = 300
) -> CopyReport:
    """Write a collection to one file, which appears at `path` when it is complete.

    Searches continue, in this process and on a server. What a killed export to the same path left
    is deleted first. Points that other programs wrote are left out.

    Args:
        collection: An open collection.
        path: The file to write.
        progress: Show a bar on stderr.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Raises:
        ConfigError: `path` exists already, or an argument is invalid; nothing was written.
        ContractMismatchError: Another model wrote some images; run `verify`.
        TokensNotFoundError: Some images have no tokens; run `verify`.
        TokensCorruptError: Some tokens are damaged; run `verify`.
        StoreError: The collection cannot be read, or the file not written.
    """
    check_collections(collection=collection)
    check_flags(progress=progress)
    path = check_path("path", path)
    with os_errors_as_store_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with new_file(path) as file, collection.patient(wait):
                return _write(collection, file, progress=progress)
        except FileExistsError as error:
            raise ConfigError(_exists(path)) from error


def import_collection(
    path: str | Path,
    location: Any,
    name: str,
    *,
    progress: bool = False,
    wait: float = 300,
    **options: Any,
) -> CopyReport:
    """Create a collection from an archive, or continue an interrupted import.

    Args:
        path: File that `export_collection` wrote.
        location: Location of the new collection; see `ImageCollection`.
        name: Name of the collection, created if it is missing.
        progress: Show a bar on stderr.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.
        options: Options of `ImageCollection.create`, except the codec; for an existing collection,
            of `ImageCollection.open`.

    Raises:
        ConfigError: The file does not exist, or an argument is invalid.
        TokensCorruptError: The archive is damaged or truncated; earlier parts have been written.
        ContractMismatchError: The collection exists and is of another model or codec.
        StoreError: The collection cannot be written, or another version wrote the archive.
        EngineUnavailableError: The connection to the server was lost; written images are kept.
    """
    check_flags(progress=progress)
    check_seconds("wait", wait)
    unknown = sorted({*options} - _OPTIONS)
    if unknown:
        raise ConfigError(
            f"import_collection has no option {unknown[0]}; it has {', '.join(sorted(_OPTIONS))}"
        )
    path = check_path("path", path)
    if kind_of(path) != "file":
        raise ConfigError(f"there is no archive {path}; give one that `edje-qdrant export` wrote")
    with os_errors_as_store_errors("read", path), _opened(path) as archive:
        members = _members(archive, path)
        contract, indexes, history, fields = _head(members, path)
        codec = _codec(members, contract, path)
        check_indexes(indexes)
        target = _target(location, name, contract, codec, options)
        with target, target.patient(wait):
            target.create_payload_indexes(indexes)
            target.add_codec_history(history)
            take_text_fields(target, fields)
            return add_parts(target, _parts(members, codec.key, path, progress=progress))


def _exists(path: Path) -> str:
    """Return the message for a path that is in use; a run that was killed late may have ended."""
    try:
        with tarfile.open(path, mode="r:") as archive:
            names = archive.getnames()
    except (OSError, tarfile.TarError):
        names = []
    if names and names[0].startswith("archive-") and names[-1].startswith("end-"):
        return (
            f"there is a whole archive at {path} already, of an earlier export; delete it to "
            "write it again, or choose another name"
        )
    return f"there is something at {path} already; choose another name"


def _write(collection: ImageCollection, file: BinaryIO, *, progress: bool) -> CopyReport:
    with collection.write_lock:
        collection.reload()
        contract, codec = collection.contract, collection.codec
    head = {"magic": _MAGIC, "format": _FORMAT, "contract": contract.as_dict()}
    if indexes := collection.payload_indexes():
        head["payload_indexes"] = indexes
    if collection.codec_history:
        head["codec_history"] = [*collection.codec_history]
    if (fields := collection.index.text_fields) is not None:
        head[WORDS_KEY] = fields.as_metadata()
    parameters = codec.parameters()
    count = nbytes = number = 0
    with tarfile.open(fileobj=file, mode="w") as archive:
        _add(archive, "archive", ".json", json.dumps(head, indent=1).encode())
        if parameters is not None:
            _add(archive, "codec", ".safetensors", parameters)
        left_out: list[str] = []
        parts = stored_parts(collection, codec, left_out, progress=progress)
        for number, part in enumerate(parts, start=1):
            _add(archive, f"part{number - 1:05}", ".safetensors", _packed(part))
            count += len(part.image_ids)
            nbytes += part.codes.nbytes
        _add(archive, "end", ".json", json.dumps({"parts": number, "pictures": count}).encode())
    return CopyReport(count, 0, nbytes, tuple(left_out))


def _add(archive: tarfile.TarFile, stem: str, suffix: str, data: bytes) -> None:
    member = tarfile.TarInfo(f"{stem}-{xxhash.xxh3_64_hexdigest(data)}{suffix}")
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _packed(part: Part) -> bytes:
    points = json.dumps([part.image_ids, part.payloads], ensure_ascii=False).encode()
    return save(
        {
            "embeddings": part.embeddings,
            "codes": part.codes,
            "points": np.frombuffer(points, np.uint8),
        }
    )


def _unpacked(data: bytes, codec: str, path: Path) -> Part:
    """Parse a part.

    Raises:
        TokensCorruptError: The data cannot be parsed.
    """
    try:
        arrays = load(data)
        image_ids, payloads = json.loads(arrays["points"].tobytes())
        return Part(codec, image_ids, arrays["embeddings"], arrays["codes"], payloads)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TokensCorruptError(_damaged(path)) from error


def _object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        return _mapping(json.loads(data), path)
    except (ValueError, RecursionError) as error:
        raise TokensCorruptError(_damaged(path)) from error


def _mapping(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TokensCorruptError(_damaged(path))
    return value


def _damaged(path: Path) -> str:
    return f"the archive {path} is damaged or cut short; take another copy of it"


def _members(archive: tarfile.TarFile, path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield stem and bytes of each member, after checking its checksum.

    Raises:
        TokensCorruptError: A member is damaged, or the archive is truncated.
    """
    damaged = _damaged(path)
    try:
        for member in archive:
            stem, _, rest = member.name.partition("-")
            file = archive.extractfile(member) if member.isfile() else None
            data = b"" if file is None else file.read()
            if file is None or xxhash.xxh3_64_hexdigest(data) != rest.partition(".")[0]:
                raise TokensCorruptError(damaged)
            yield stem, data
    except (tarfile.TarError, EOFError) as error:
        raise TokensCorruptError(damaged) from error
    raise TokensCorruptError(damaged)  # reading past the last member: a member is missing


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, mode="r:")
    except tarfile.TarError as error:
        raise TokensCorruptError(
            f"{path} is not an archive of `edje-qdrant export`, or its beginning is damaged"
        ) from error


def _head(
    members: Iterator[tuple[str, bytes]], path: Path
) -> tuple[TokenContract, dict[str, Any], list[str], TextFields | None]:
    """Return the contract, field -> kind of the payload indexes, earlier codecs, and text fields.

    Raises:
        StoreError: Another version, or another program, wrote the archive.
        TokensCorruptError: The archive is damaged.
    """
    stem, data = next(members)
    head = _object(data, path) if stem == "archive" else {}
    if head.get("magic") != _MAGIC or head.get("format") != _FORMAT:
        raise StoreError(
            f"{path} has format {head.get('format')!r} of {head.get('magic')!r}, this version "
            f"reads format {_FORMAT} of {_MAGIC!r}; use the version of the package that wrote it"
        )
    contract = TokenContract.from_dict(_mapping(head.get("contract"), path))
    history = head.get("codec_history", [])
    if not isinstance(history, list):
        raise TokensCorruptError(_damaged(path))
    indexes = _mapping(head.get("payload_indexes", {}), path)
    return contract, indexes, [str(codec) for codec in history], TextFields.read(head)


def _codec(members: Iterator[tuple[str, bytes]], contract: TokenContract, path: Path) -> Codec:
    parameters = next(members)[1] if contract.codec_hash else None
    codec = codec_for(contract.codec, contract.num_tokens, contract.token_dim, parameters)
    if codec.hash != contract.codec_hash:
        raise TokensCorruptError(f"the codebook in the archive {path} is not its contract's")
    return codec


def _parts(
    members: Iterator[tuple[str, bytes]], codec: str, path: Path, *, progress: bool
) -> Iterator[Part]:
    """Yield all parts.

    Raises:
        TokensCorruptError: A part is damaged or missing.
    """
    parts = images = 0
    with tqdm(desc="importing", unit=" images", disable=not progress) as shown:
        for stem, data in members:
            if stem == "end":
                if _object(data, path) != {"parts": parts, "pictures": images}:
                    raise TokensCorruptError(f"the archive {path} lacks parts; take another copy")
                return
            part = _unpacked(data, codec, path)
            yield part
            parts += 1
            images += len(part.image_ids)
            shown.update(len(part.image_ids))


def _target(
    location: Any, name: str, contract: TokenContract, codec: Codec, options: dict[str, Any]
) -> ImageCollection:
    """Open the target collection, or create it.

    Raises:
        ContractMismatchError: It exists, and is of another model or codec.
    """
    try:
        found = ImageCollection.open(
            location, name, **{key: options[key] for key in options if key not in _CREATION_ONLY}
        )
    except CollectionNotFoundError:
        try:
            return ImageCollection.create(location, name, contract, codec=codec, **options)
        except CollectionExistsError:  # another process was quicker
            return _target(location, name, contract, codec, options)
    try:
        contract.require_match(found.contract, where=f"the collection {name!r} at {location}")
    except ContractMismatchError:
        found.close()
        raise
    return found
