"""Use collections as a user who may read their folders and not write to them; print what came.

Run as `python reading_only.py FOLDER`, with a collection `images` of 20 images in `FOLDER/edge` and
`FOLDER/faiss`, and one that this user may not read in `FOLDER/closed`. Root may write everywhere,
so root becomes another user after the imports.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import faiss  # noqa: F401 - before the user changes, who may not read Python's own files
import qdrant_edge  # noqa: F401 - as above
from collection_places import CONTRACT, encoding_of, ids_of, payloads_of
from qdrant_client import models  # noqa: F401 - as above

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import EdjeError
from edje_qdrant.maintenance import (
    compact,
    export_collection,
    fit_codec,  # noqa: F401 - as above
    transcode,
    verify,
)
from edje_qdrant.maintenance.repair import repair
from edje_qdrant.migration import migrate, migration_status

_NOBODY = 65534


class Other:
    """Stands for a new model; it is not asked for encodings."""

    def contract(self) -> TokenContract:
        return CONTRACT

    def encode_images(self) -> None:
        raise AssertionError


OTHER: Any = Other()


def tried(act) -> str:
    try:
        return str(act())
    except EdjeError as error:
        return f"{type(error).__name__}: {error}"


def used(folder: str, place: Path) -> dict[str, str]:
    with ImageCollection.open(folder, "images") as collection:
        ids = ids_of(20)
        archive = place / collection.index.engine
        (found,) = collection.nearest(encoding_of(ids[:1]).embeddings, 3)
        copies = -1
        if collection.read_only:
            second = ImageCollection.open(folder, "images")
            copies = len([*place.glob(".edje-index-*")])
            second.close()
        return {
            "read_only": str(collection.read_only),
            "nearest": str([candidate.image_id == ids[0] for candidate in found]),
            "tokens": str(collection.tokens(found).shape),
            "count": str(collection.count()),
            "clean": str(verify(collection).clean),
            "exported": tried(lambda: export_collection(collection, archive).copied),
            "copies": str(copies),
            "flush": tried(collection.flush),
            "add": tried(
                lambda: collection.add(ids[:1], encoding_of(ids[:1]), payloads_of(ids[:1]))
            ),
            "update": tried(lambda: collection.update_payload({ids[0]: {"a": 1}})),
            "delete": tried(lambda: collection.delete(ids[:1])),
            "optimize": tried(collection.optimize),
            "transcode": tried(lambda: transcode(collection, "int8")),
            "compact": tried(lambda: compact(collection)),
            "repair": tried(lambda: repair(collection)),
            "index": tried(lambda: collection.create_payload_index("a", "keyword")),
            "migrate": tried(lambda: migrate(collection, OTHER, batch_size=1, progress=False)),
            "migration": str(migration_status(collection)),
        }


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        # Everything is imported as the first user: the other may not read the environment.
        for engine in ("edge", "faiss"):
            copy = Path(name, engine)
            shutil.copytree(folder / engine, copy)
            used(str(copy), Path(name))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    place = Path(tempfile.mkdtemp())
    tempfile.tempdir = str(place)
    came: dict[str, object] = {
        engine: used(str(folder / engine), place) for engine in ("edge", "faiss")
    }
    came["left"] = [path.name for path in place.iterdir()]
    came["closed"] = tried(lambda: ImageCollection.open(folder / "closed", "images"))
    came["create"] = tried(lambda: ImageCollection.open(folder / "edge", "x" * 300))
    sys.stdout.write(json.dumps(came))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
