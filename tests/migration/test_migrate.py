"""A filled collection gets another model while it is searched."""

from __future__ import annotations

import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from document_files import BLUE, RED, write_document
from migration_world import TEXTS, World, draw, held, rankings
from qdrant_client import models

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import (
    CollectionNotFoundError,
    ConfigError,
    ContractMismatchError,
    StoreError,
)
from edje_qdrant.index import QdrantSettings
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.maintenance import transcode, verify
from edje_qdrant.migration import (
    compare_rankings,
    cut_over,
    drop_old,
    migrate,
    migration_status,
    rollback,
    sample_texts,
)
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.device_index import DeviceIndex
from edje_qdrant.search.retriever import TwoStageRetriever


def quick(collection: ImageCollection, model: EDJEModel, **more: Any) -> Any:
    return migrate(collection, model, batch_size=4, workers=1, progress=False, **more)


def change_over(collection: ImageCollection, model: EDJEModel, **more: Any) -> Any:
    return cut_over(collection, model, batch_size=4, grace=0, progress=False, **more)


def sides(world: World) -> list[str]:
    """Return the collections on the server, or the sides in the folder, that hold points."""
    if world.server is None:
        inside = Path(world.location, "images", "sides")
        return sorted(path.name for path in inside.iterdir()) if inside.exists() else []
    names = [each.name for each in world.location.get_collections().collections]
    return sorted(name for name in names if name.startswith(world.name + "--"))


def test_from_one_model_to_another_and_the_next(
    world: World, tiny_model: EDJEModel, demo_model: EDJEModel, other_model: EDJEModel
) -> None:
    with world.create(demo_model, f"{world.name}-fresh") as fresh:
        world.ingest(fresh, demo_model)
        wanted, fields = rankings(fresh, demo_model), held(fresh)
    with world.filled(tiny_model, payload_indexes={"width": "integer"}) as collection:
        before = rankings(collection, tiny_model)
        report = quick(collection, demo_model)
        assert (report.encoded, report.done, report.images, report.missing) == (6, 6, 6, ())
        assert rankings(collection, tiny_model) == before
        status = migration_status(collection)
        assert status is not None
        assert (status.state, status.images, status.other_images) == ("encoding", 6, 6)
        agreement = compare_rankings(collection, tiny_model, demo_model, TEXTS, depth=6)
        assert (agreement.texts, agreement.overlap) == (3, 1.0)
    with world.open() as collection:  # opened again, it is the old model's still
        collection.require(tiny_model.contract())
        assert rankings(collection, tiny_model) == before
        changed = change_over(collection, demo_model)
        assert (changed.images, changed.caught_up, changed.left_out) == (6, 0, ())
        with pytest.raises(ContractMismatchError, match="embedding_dim: expected 24, found"):
            collection.nearest(tiny_model.encode_texts(["x"]), 3)
    with world.open() as collection:
        with pytest.raises(ContractMismatchError):
            TwoStageRetriever(collection, tiny_model)
        assert rankings(collection, demo_model) == wanted
        assert held(collection) == fields
        if collection.index.engine != "faiss":
            assert {*collection.payload_indexes()} == {"width"}
        assert verify(collection).clean
        status = migration_status(collection)
        assert status is not None
        assert (status.state, status.other_images) == ("kept", 6)
        with pytest.raises(ConfigError, match="still has the side of the model before"):
            quick(collection, other_model)
        assert drop_old(collection) == 6
        assert migration_status(collection) is None
        assert rankings(collection, demo_model) == wanted
        quick(collection, other_model)
        change_over(collection, other_model)
    with world.open() as collection:
        assert drop_old(collection) == 6
        found = rankings(collection, other_model)
        assert len(sides(world)) == 1
    with world.open() as collection:
        assert rankings(collection, other_model) == found
        assert migration_status(collection) is None
        assert len(collection) == 6


def test_a_folder_gets_another_model(
    edge_world: World, tiny_model: EDJEModel, other_model: EDJEModel
) -> None:
    """The short form of what the tests of all places do."""
    with edge_world.filled(tiny_model) as collection:
        before = rankings(collection, tiny_model)
        quick(collection, other_model)
        change_over(collection, other_model)
        with pytest.raises(ContractMismatchError, match="replaced since it was opened"):
            collection.nearest(tiny_model.encode_texts(["x"]), 3)
        with pytest.raises(ContractMismatchError, match="replaced since it was opened"):
            collection.delete([])
    with edge_world.open() as collection:
        assert rankings(collection, other_model) != before
        assert drop_old(collection) == 6
        assert len(rankings(collection, other_model)[0]) == 6


def test_what_changes_in_between_is_caught_up_with(
    world: World, tiny_model: EDJEModel, other_model: EDJEModel, tmp_path: Path
) -> None:
    world.pictures = Path(shutil.copytree(world.pictures, tmp_path / "own"))
    with world.filled(tiny_model) as collection:
        quick(collection, other_model)
        ids = sorted(held(collection))
        collection.delete(ids[:2])
        collection.update_payload({ids[2]: {"album": "2024"}, ids[3]: {"rating": 3}})
        collection.index.remove_payload_keys([ids[4]], ["width"])
        draw(world.pictures, 1, seed=7)
        kept = {"path": held(collection)[ids[2]]["path"]}
        for path in world.pictures.glob("0-*"):
            if str(path) != kept["path"] and str(path) not in str(held(collection)):
                path.unlink()
        assert world.ingest(collection, tiny_model) == 1
        changed = change_over(collection, other_model)
        assert changed.caught_up == 6
    with world.open() as collection:
        now = held(collection)
        assert len(now) == 5
        assert not {*ids[:2]} & {*now}
        assert (now[ids[2]]["album"], now[ids[3]]["rating"]) == ("2024", 3)
        assert "width" not in now[ids[4]]
        assert len({hit for hit, _ in rankings(collection, other_model)[0]}) == 5


def test_a_run_that_stopped_is_continued(
    world: World, tiny_model: EDJEModel, other_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[str]()
    original = ImageCollection.add_new

    def fails(self: ImageCollection, *args: Any) -> set[str]:
        calls["add"] += 1
        if calls["add"] == 2:
            raise StoreError("the disk refused")
        return original(self, *args)

    with world.filled(tiny_model) as collection:
        before = rankings(collection, tiny_model)
        with monkeypatch.context() as patch:
            patch.setattr(ImageCollection, "add_new", fails)
            with pytest.raises(StoreError, match="the disk refused"):
                quick(collection, other_model)
        assert rankings(collection, tiny_model) == before
        report = quick(collection, other_model)
        assert (report.encoded, report.done) == (2, 6)


def test_images_that_are_gone_are_named_and_stop_the_cut_over(
    world: World, tiny_model: EDJEModel, other_model: EDJEModel, tmp_path: Path
) -> None:
    world.pictures = Path(shutil.copytree(world.pictures, tmp_path / "own"))
    with world.filled(tiny_model) as collection:
        first, second, third, *_ = sorted(world.pictures.iterdir())
        first.unlink()
        second.write_bytes(third.read_bytes())
        report = quick(collection, other_model)
        assert report.done == 4
        reasons = {Path(str(each.path)): each.reason for each in report.missing}
        assert {*reasons} == {first, second}
        assert "another image now" in reasons[second]
        with pytest.raises(StoreError, match=r"2 images .*nothing was changed over"):
            change_over(collection, other_model)
        status = migration_status(collection)
        assert status is not None
        assert status.state == "encoding"
        collection.update_payload({report.missing[0].image_id: {"rating": 1}})  # writes go on
        changed = change_over(collection, other_model, leave_out_missing=True)
        assert {Path(str(each.path)) for each in changed.left_out} == {first, second}
    with world.open() as collection:
        assert len(collection) == 4


def test_a_rollback_removes_the_new_side(
    world: World, tiny_model: EDJEModel, other_model: EDJEModel
) -> None:
    with world.filled(tiny_model) as collection:
        before = rankings(collection, tiny_model)
        quick(collection, other_model)
        assert len(sides(world)) == 1
        assert rollback(collection) == 6
        assert sides(world) == []
        assert migration_status(collection) is None
        with pytest.raises(ConfigError, match="no other side to go back to"):
            rollback(collection)
        quick(collection, other_model)
        change_over(collection, other_model)
    with world.open() as collection:
        collection.delete(sorted(held(collection))[:4])
        assert rollback(collection) == 2
    with world.open() as collection:
        assert rankings(collection, tiny_model) == before
        assert sides(world) == []
        assert verify(collection).clean
        quick(collection, other_model)
        change_over(collection, other_model)
    with world.open() as collection:
        drop_old(collection)
        with pytest.raises(ConfigError, match="no other side to go back to"):
            rollback(collection)
        with pytest.raises(ConfigError, match="no side of an earlier model"):
            drop_old(collection)


def test_other_processes_learn_of_it(
    server_world: World,
    tiny_model: EDJEModel,
    other_model: EDJEModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They search with the old model for a while; never both models' images."""
    world = server_world
    seen: list[str] = []
    query = tiny_model.encode_texts(["x"])

    def during_grace(seconds: float) -> None:
        if seconds != 7:
            return
        # A service goes on, and learns where the images are.
        assert rankings(other, tiny_model) == before
        other.probe(points=True)
        assert other.named_now()[1] == other_model.contract().model_key
        with pytest.raises(ContractMismatchError):
            other.update_payload({sorted(held(other))[0]: {"rating": 1}})
        with pytest.raises(ContractMismatchError):
            world.ingest(other, tiny_model) or other.delete(sorted(held(other))[:1])
        with world.open() as new:
            assert len(rankings(new, other_model)[0]) == 6
        seen.append("grace")

    with world.filled(tiny_model) as collection, world.open() as other:
        before = rankings(other, tiny_model)
        on_device = DeviceIndex(other, "cpu")
        (found,) = on_device.nearest(query, 3)
        assert len(found[0].payload) > 1
        quick(collection, other_model)
        monkeypatch.setattr("edje_qdrant.migration.change_over.sleep", during_grace)
        cut_over(collection, other_model, grace=7, progress=False)
        assert seen == ["grace"]
        for attempt in (
            lambda: other.nearest(query, 3),
            lambda: on_device.nearest(query, 3)[0][0].payload,
            lambda: TwoStageRetriever(other, tiny_model).search("x"),
            lambda: other.tokens(other.nearest(query, 3)[0]),
            lambda: other.probe(),
            lambda: other.set_codec("int8"),
            lambda: other.reload(),
        ):
            with pytest.raises(ContractMismatchError, match="replaced since it was opened"):
                attempt()
        with world.open() as new:
            drop_old(new)
        with pytest.raises(ContractMismatchError, match="replaced since it was opened"):
            other.nearest(query, 3)
        on_device._looked = 0  # as if two seconds were over
        with pytest.raises(ContractMismatchError, match="replaced since it was opened"):
            on_device.nearest(query, 3)
        on_device.close()


def test_no_writes_of_others_while_it_changes_over(
    server_world: World,
    tiny_model: EDJEModel,
    other_model: EDJEModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, seen = server_world, []

    def in_flight(seconds: float) -> None:
        if seconds != 3:
            return
        ids = sorted(held(other))
        with pytest.raises(StoreError, match="takes no writes until"):
            other.update_payload({ids[0]: {"rating": 1}})
        with pytest.raises(StoreError, match="takes no writes until"):
            other.delete(ids[:1])
        assert len(rankings(other, tiny_model)[0]) == 6
        seen.append("refused")
        raise KeyboardInterrupt

    with world.filled(tiny_model) as collection, world.open() as other:
        quick(collection, other_model)
        monkeypatch.setattr("edje_qdrant.migration.change_over.sleep", in_flight)
        monkeypatch.setattr("edje_qdrant.migration.change_over._IN_FLIGHT", 3)
        with pytest.raises(KeyboardInterrupt):
            change_over(collection, other_model)
        assert seen == ["refused"]
        other.update_payload({sorted(held(other))[0]: {"rating": 1}})  # it is allowed again


def test_a_stale_process_does_not_undo_it(
    server_world: World, tiny_model: EDJEModel, other_model: EDJEModel
) -> None:
    world = server_world
    with world.filled(tiny_model) as collection, world.open() as other:
        quick(collection, other_model)
        transcode(other, "int8")
        assert collection.migration_now() is not None
        assert change_over(collection, other_model).images == 6


def test_the_new_side_is_stored_as_the_old_one(
    server_world: World, tiny_model: EDJEModel, other_model: EDJEModel
) -> None:
    world = server_world
    settings = QdrantSettings(quantization="int8", vectors_on_disk=True, payload_on_disk=True)
    strict = models.StrictModeConfig(enabled=True, max_query_limit=500, upsert_max_batchsize=4)
    with world.filled(tiny_model, qdrant=settings, codec="int8") as collection:
        world.location.update_collection(world.name, strict_mode_config=strict)
        report = quick(collection, other_model)
        assert report.done == 6
    old, new = (world.location.get_collection(each).config for each in (world.name, report.to))
    assert new.quantization_config == old.quantization_config is not None
    assert new.params.vectors.on_disk
    assert new.params == old.params
    assert new.hnsw_config == old.hnsw_config
    assert new.optimizer_config == old.optimizer_config
    assert new.strict_mode_config == old.strict_mode_config is not None
    with world.open() as collection, collection.open_side(report.to) as side:
        assert side.codec.name == "int8"


@pytest.mark.slow
def test_a_codebook_is_fitted_for_the_new_model(
    server_world: World, tiny_model: EDJEModel, demo_model: EDJEModel, tmp_path: Path
) -> None:
    world = server_world
    world.pictures = tmp_path / "many"
    draw(world.pictures, 30)
    with world.filled(tiny_model) as collection:
        quick(collection, demo_model, codec="pq16")
        with pytest.raises(ConfigError, match="began with the codec pq16-"):
            quick(collection, demo_model, codec="int4")
        change_over(collection, demo_model)
    with world.open() as collection:
        assert collection.codec.name == "pq16"
        assert len(rankings(collection, demo_model)[0]) == 30


@pytest.mark.slow
def test_what_a_killed_rollback_left_is_deleted(
    folder_world: World,
    tiny_model: EDJEModel,
    other_model: EDJEModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(path: Path, *_: Any, **more: Any) -> None:
        if not more:
            raise KeyboardInterrupt

    with folder_world.filled(tiny_model) as collection:
        quick(collection, other_model)
        with monkeypatch.context() as patch:
            patch.setattr("edje_qdrant.index.folder_backend.shutil.rmtree", killed)
            with pytest.raises(KeyboardInterrupt):
                rollback(collection)
        assert [name[:1] for name in sides(folder_world)] == ["."]
        status = migration_status(collection)
        assert status is not None
        assert status.state == "rolling back"
        assert rollback(collection) == 0
        assert sides(folder_world) == []


def test_what_cannot_be_done_is_refused(
    server_world: World, tiny_model: EDJEModel, other_model: EDJEModel, demo_model: EDJEModel
) -> None:
    world = server_world
    with world.filled(tiny_model) as collection:
        with pytest.raises(ConfigError, match="was written by this model already"):
            quick(collection, tiny_model)
        with pytest.raises(ConfigError, match="no migration of the collection"):
            change_over(collection, other_model)
        with pytest.raises(ConfigError, match="no migration of the collection"):
            compare_rankings(collection, tiny_model, other_model, ["x"])
        for wrong in (
            {"batch_size": 0}, {"workers": 0}, {"checkpoint_every": 0}, {"wait": -1},
            {"progress": "yes"}, {"codec": "int3"},
        ):  # fmt: skip
            with pytest.raises(ConfigError):
                migrate(collection, other_model, **{"progress": False, **wrong})  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="give an EDJEModel"):
            quick(collection, "demo")  # type: ignore[arg-type]
        assert migration_status(collection) is None
        quick(collection, other_model)
        with pytest.raises(ConfigError, match="is being migrated to another model"):
            quick(collection, demo_model)
        with pytest.raises(ConfigError, match="is being migrated to another model"):
            change_over(collection, demo_model)
        with pytest.raises(ConfigError, match="there are no texts"):
            compare_rankings(collection, tiny_model, other_model, [])
        with pytest.raises(ConfigError, match="grace"):
            cut_over(collection, other_model, grace=-1)
        with pytest.raises(ConfigError, match="leave_out_missing"):
            cut_over(collection, other_model, leave_out_missing="yes")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="no side of an earlier model"):
            drop_old(collection)
    with pytest.raises(StoreError, match="closed"):
        quick(collection, other_model)
    with (
        ImageCollection.create(":memory:", "images", tiny_model.contract()) as in_memory,
        pytest.raises(ConfigError, match="gone when it is closed"),
    ):
        quick(in_memory, other_model)
    with pytest.raises(ConfigError, match="ImageCollection"):
        migration_status("images")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_full_disk_stops_it_and_changes_nothing(
    folder_world: World,
    tiny_model: EDJEModel,
    other_model: EDJEModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with folder_world.filled(tiny_model) as collection:
        before = rankings(collection, tiny_model)
        usage = shutil.disk_usage(folder_world.pictures)
        full = type(usage)(usage.total, usage.total, 0)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: full)
            with pytest.raises(StoreError, match="no space left"):
                quick(collection, other_model)
        assert rankings(collection, tiny_model) == before
        assert quick(collection, other_model).done == 6
        assert len(change_over(collection, other_model).left_out) == 0


def test_pages_frames_and_members_are_read_again(
    server_world: World, tiny_model: EDJEModel, other_model: EDJEModel, tmp_path: Path
) -> None:
    pytest.importorskip("pypdfium2")
    world = server_world
    document = write_document(tmp_path / "two.pdf", (RED, BLUE))
    (picture,) = draw(tmp_path / "packed", 1)
    with tarfile.open(tmp_path / "packed.tar", "w") as archive:
        archive.add(picture, "inside/0.png")
    picture.unlink()
    with world.create(tiny_model) as collection:
        for source, count in ((document, 2), (tmp_path / "packed.tar", 1)):
            assert ingest_images(source, collection, tiny_model, progress=False).added == count
        assert quick(collection, other_model).missing == ()
        document.write_bytes(write_document(tmp_path / "other.pdf", (BLUE, RED)).read_bytes())
        with collection.open_side(f"{world.name}--{other_model.contract().model_key}") as side:
            page = next(i for i, payload in held(side).items() if payload.get("page") == 1)
            side.delete([page])
        (missing,) = quick(collection, other_model).missing
        assert (missing.image_id, missing.path) == (page, f"{document}#page=1")
        assert missing.reason == "its file contains another image now"


@pytest.mark.slow
def test_earlier_versions_refuse_a_side_that_was_replaced(
    folder_world: World, tiny_model: EDJEModel, other_model: EDJEModel
) -> None:
    """They read the format 1 alone, and name the one they found."""
    from edje_qdrant.index.folder import read_metadata

    with folder_world.filled(tiny_model) as collection:
        quick(collection, other_model)
        assert collection.index.metadata["format"] == 1
        change_over(collection, other_model)
    metadata = read_metadata(Path(folder_world.location, "images"))[1]
    assert metadata["format"] == 2
    assert metadata["contract"] == {**other_model.contract().as_dict()}


@pytest.mark.slow
def test_a_side_that_is_gone_is_an_error(
    folder_world: World, tiny_model: EDJEModel, other_model: EDJEModel
) -> None:
    with folder_world.filled(tiny_model) as collection:
        quick(collection, other_model)
        change_over(collection, other_model)
    shutil.rmtree(Path(folder_world.location, "images", "sides"))
    with pytest.raises(CollectionNotFoundError):
        folder_world.open()


def test_captions_of_images_are_the_texts_to_compare(
    server_world: World, tiny_model: EDJEModel
) -> None:
    with server_world.filled(tiny_model) as collection:
        assert sample_texts(collection) == []
        first, second, third, *_ = sorted(held(collection))
        collection.update_payload(
            {first: {"caption": "a cat"}, second: {"captions": ["a cat", "a dog"]},
             third: {"caption": 7, "title": " "}}
        )  # fmt: skip
        assert sample_texts(collection) == ["a cat", "a dog"]
        assert sample_texts(collection, 1) == ["a cat"]


def test_words_of_fields_stay(world: World, tiny_model: EDJEModel, other_model: EDJEModel) -> None:
    """They belong to the images and not to a model, also of what changes in between."""
    if world.more.get("engine") == "faiss":
        pytest.skip("faiss keeps no words")

    def first(collection: ImageCollection, model: EDJEModel, text: str) -> str:
        retriever = TwoStageRetriever(collection, model, token_cache=None)
        found = retriever.search(text, hybrid=True, words_weight=100, num_candidates=1, top_k=1)
        return found[0].image_id

    with world.filled(tiny_model, text_fields=["caption"]) as collection:
        ids = sorted(held(collection))
        collection.update_payload({key: {"caption": f"word{n}"} for n, key in enumerate(ids)})
        quick(collection, other_model)
        collection.update_payload({ids[0]: {"caption": "lighthouse"}, ids[1]: {"rating": 1}})
        collection.index.remove_payload_keys([ids[5]], ["caption"])
        assert first(collection, tiny_model, "lighthouse") == ids[0]
        change_over(collection, other_model)
    with world.open() as collection:
        assert collection.text_fields == ("caption",)
        assert first(collection, other_model, "lighthouse") == ids[0]
        assert [first(collection, other_model, f"word{n}") for n in (1, 2, 3)] == ids[1:4]
        assert verify(collection).clean
        drop_old(collection)
        quick(collection, tiny_model)
        change_over(collection, tiny_model)
    with world.open() as collection:
        assert first(collection, tiny_model, "lighthouse") == ids[0]
