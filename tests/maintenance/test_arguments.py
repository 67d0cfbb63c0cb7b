"""Arguments are checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from collection_places import Place, encoding_of, fill, ids_of, make_place
from stored import held

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.maintenance import (
    compact,
    copy_collection,
    export_collection,
    fit_codec,
    import_collection,
    transcode,
    verify,
)
from edje_qdrant.maintenance.repair import repair
from edje_qdrant.tokens.codecs import codec_for

Call = Callable[[Any, Any], Any]

WRONG: dict[str, Call] = {
    "transcode to a number": lambda c, _: transcode(c, 8),  # type: ignore[arg-type]
    "transcode to an unknown name": lambda c, _: transcode(c, "int7"),
    "transcode to a name that needs fitting": lambda c, _: transcode(c, "pq16"),
    "transcode to another shape": lambda c, _: transcode(c, codec_for("int8", 5, 6)),
    "transcode to a class": lambda c, _: transcode(c, type(codec_for("int8", 4, 6))),  # type: ignore[arg-type]
    "transcode, progress": lambda c, _: transcode(c, "int8", progress="no"),  # type: ignore[arg-type]
    "set_codec": lambda c, _: c.set_codec(None),
    "compact, progress": lambda c, _: compact(c, progress=1),  # type: ignore[arg-type]
    "compact a name": lambda _, to: compact("images"),  # type: ignore[arg-type]
    "verify a name": lambda _, to: verify("images"),  # type: ignore[arg-type]
    "verify, images": lambda c, _: verify(c, images="/pictures"),  # type: ignore[arg-type]
    "repair with a name": lambda c, _: repair(c, "demo"),  # type: ignore[arg-type]
    "repair by 0": lambda c, _: repair(c, batch_size=0),
    "repair by True": lambda c, _: repair(c, batch_size=True),
    "repair a name": lambda c, _: repair("images"),  # type: ignore[arg-type]
    "copy to a name": lambda c, _: copy_collection(c, "images"),  # type: ignore[arg-type]
    "copy from a name": lambda c, _: copy_collection("images", c),  # type: ignore[arg-type]
    "export to nothing": lambda c, _: export_collection(c, ""),
    "export to a number": lambda c, _: export_collection(c, 1),  # type: ignore[arg-type]
    "export a name": lambda _, to: export_collection("images", to / "x"),  # type: ignore[arg-type]
    "import an option": lambda _, to: import_collection(to / "a", to, "new", codecs="int8"),
    "import the codec": lambda _, to: import_collection(to / "a", to, "new", codec="int8"),
    "import, tokens": lambda _, to: import_collection(to / "a", to, "new", tokens="disk"),
    "import, engine": lambda _, to: import_collection(to / "a", to, "new", engine="annoy"),
    "import, indexes": lambda _, to: import_collection(
        to / "a", to, "new", payload_indexes={"a": "words"}
    ),
    "import, name": lambda _, to: import_collection(to / "a", to, "a/b"),
    "import nothing": lambda _, to: import_collection("", to, "new"),
    "fit a number": lambda c, _: fit_codec(c, 16),  # type: ignore[arg-type]
    "fit on True": lambda c, _: fit_codec(c, "pq16", sample=True),
    "fit, seed": lambda c, _: fit_codec(c, "pq16", seed="x"),  # type: ignore[arg-type]
    "fit a name": lambda _, to: fit_codec("images", "pq16"),  # type: ignore[arg-type]
}


@pytest.fixture(scope="module", params=["edge-file", "memory-payload"])
def filled(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arguments")
    place: Place = make_place(request.param, folder)
    with place.create() as collection:
        fill(collection, ids_of(5))
        export_collection(collection, folder / "a")
        yield collection, folder


def state(collection: ImageCollection) -> tuple[Any, ...]:
    return collection.codec.key, collection.contract, held(collection), verify(collection)


@pytest.mark.parametrize("call", WRONG)
def test_what_cannot_be_used_changes_nothing(filled, call):
    collection, folder = filled
    before = state(collection), sorted(folder.iterdir())
    with pytest.raises(ConfigError):
        WRONG[call](collection, folder)
    assert (state(collection), sorted(folder.iterdir())) == before


def test_the_name_of_a_codec_is_enough(tmp_path):
    with make_place("edge-file", tmp_path).create() as collection:
        fill(collection, ids_of(5))
        assert transcode(collection, "int8").moved == 5
        assert collection.codec.key == "int8"
        assert verify(collection).clean


def test_a_closed_collection_is_said_to_be_closed(tmp_path):
    with make_place("edge-file", tmp_path).create() as collection:
        collection.add(ids_of(1), encoding_of(ids_of(1)), [{}])
    for call in (verify, compact, repair):
        with pytest.raises(StoreError, match="closed; open it again"):
            call(collection)
    with pytest.raises(StoreError, match="closed; open it again"):
        export_collection(collection, tmp_path / "a")
    assert not (tmp_path / "a").exists()
