"""The atomic step from one model to the other, the way back, and the end of the old side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from time import sleep
from typing import TYPE_CHECKING

from edje_qdrant.checks import check_kind, check_seconds
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.moved import Migration, Moved, read_moved
from edje_qdrant.collection.references import CONTRACT_KEY, is_ours
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import CollectionNotFoundError, ConfigError, EdjeError, StoreError
from edje_qdrant.index import VectorIndex
from edje_qdrant.migration.catch_up import CatchUp, Encoding, delete_gone, encode_images
from edje_qdrant.migration.encode_side import encoding_of, opened_side, still_missing
from edje_qdrant.migration.reports import CutOverReport, MissingImage
from edje_qdrant.migration.status import OldSide, old_side

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = ["cut_over", "drop_old", "rollback"]

# Seconds for requests of other processes that were sent before writes are refused.
_IN_FLIGHT = 2.0

# Points whose signature is changed, or which are deleted, in one request.
_PAGE = 1024


def cut_over(
    collection: ImageCollection,
    model: EDJEModel,
    *,
    leave_out_missing: bool = False,
    grace: float = 30.0,
    batch_size: int | None = None,
    progress: bool = True,
    wait: float = 300,
) -> CutOverReport:
    """Make the side that `migrate` filled the one that is searched, in one atomic step.

    First it catches up with what was written since. On a server, other processes cannot write to
    the collection while it does, and searches go on. Then the collection's metadata is replaced:
    from that moment on the name stands for the new side, and the old model cannot open it.

    Other processes that have the collection open with the old model cannot write any more, and go
    on to search the old side for `grace` seconds, in which a service that follows
    (`edje-qdrant serve --follow-alias`) loads the new model. After that their searches raise
    ContractMismatchError. No ranking has images of both sides.

    `collection` is closed; open it again, with the new model. A cut-over that was interrupted is
    continued by another call. After one that was finished, another call changes nothing, and
    `collection` stays open.

    Args:
        collection: An open collection with a migration under way.
        model: The new model.
        leave_out_missing: Cut over although some images cannot be encoded; they are then no longer
            in the collection.
        grace: Seconds for which other processes may go on to search with the old model. In a
            folder there are none, and nothing is waited for.
        batch_size: Images encoded at a time; by default 32 on a CPU, 64 on a GPU.
        progress: Show a bar on stderr.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Raises:
        ConfigError: An argument is invalid, no migration is under way, or it is to another model.
        StoreError: Some images cannot be encoded, and nothing was changed over; or the disk or the
            engine refused: run it again.
        EngineUnavailableError: The connection to the server was lost; run it again.
    """
    how = encoding_of(collection, model, batch_size, progress=progress)
    check_seconds("grace", grace)
    check_seconds("wait", wait)
    if not isinstance(leave_out_missing, bool):
        raise ConfigError(f"leave_out_missing is {leave_out_missing!r}; give True or False")
    old = old_side(collection)
    if old is not None and old.moved.state == "settling":
        collection.require(model.contract())
        with collection.patient(wait):
            _settle(collection, old.name, grace)
            return CutOverReport(collection.contract.model, collection.count(), 0, ())
    if old is not None and model.contract().model_key == collection.contract.model_key:
        return CutOverReport(collection.contract.model, collection.count(), 0, ())
    if collection.migration_now() is None:
        raise ConfigError(
            f"no migration of the collection {collection.name!r} is under way; begin one with "
            "migrate (edje-qdrant migrate --model NEW)"
        )
    done = CatchUp()
    with collection.patient(wait), opened_side(collection, how, None) as side, side.patient(wait):
        # Without the lock first, so that there is little to do with it.
        _catch_up(collection, side, how, done, leave_out_missing)
        with collection.write_lock:
            shared, old_name = collection.index.shared, collection.origin.sides[-1]
            with _writes_refused(collection, side) if shared else nullcontext():
                missing = _catch_up(collection, side, how, done, leave_out_missing)
                side.optimize()
                side.flush()
                moved = Moved(side.name, side.contract, "settling" if shared else "kept", {})
                collection.move_to(moved)
        if shared:
            _settle(side, old_name, grace)
        return CutOverReport(side.contract.model, side.count(), done.changed, missing)


def _catch_up(
    collection: ImageCollection,
    side: ImageCollection,
    how: Encoding,
    done: CatchUp,
    leave_out_missing: bool,
) -> tuple[MissingImage, ...]:
    """Make the new side hold what the old one does; return the images that cannot be encoded.

    Raises:
        StoreError: There are such images, and they are not to be left out.
    """
    done.deleted += delete_gone(collection.index, side)
    encode_images(collection.index, side, how, done, total=collection.count())
    missing = still_missing(collection, side, done)
    if missing and not leave_out_missing:
        named = "; ".join(f"{each.path or each.image_id}: {each.reason}" for each in missing[:3])
        more = f"; and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise StoreError(
            f"{len(missing)} images of the collection {collection.name!r} cannot be encoded with "
            f"the new model ({named}{more}), so nothing was changed over: put their files back, "
            "delete the images, or cut over without them with leave_out_missing=True "
            "(--leave-out-missing)"
        )
    return missing


@contextmanager
def _writes_refused(collection: ImageCollection, side: ImageCollection) -> Iterator[None]:
    """Keep other processes from writing to the old side; they may again if the block fails."""
    collection.set_migration(Migration(side.name, side.contract, "closing"))
    try:
        sleep(_IN_FLIGHT)
        yield
    except BaseException:
        with suppress(EdjeError):  # the first error says more; the next run opens it again
            collection.set_migration(Migration(side.name, side.contract))
        raise


def _settle(side: ImageCollection, old_name: str, grace: float) -> None:
    """Let other processes search the old side for a while, then refuse that to them."""
    with closing(side.open_side_index(old_name)) as old:
        sleep(grace)
        moved = read_moved(old.metadata, repr(old_name))
        _sign(old, moved.contract.model_key)
        old.set_metadata(replace(moved, state="kept").as_metadata())


def _sign(old: VectorIndex, model_key: str) -> None:
    """Make the points of an old side name a model; only with that one can they be searched."""
    for page in old.scroll(batch_size=_PAGE):
        old.sign([p.id for p in page if is_ours(p.id, p.payload)], {CONTRACT_KEY: model_key})


def rollback(collection: ImageCollection) -> int:
    """Remove the new side of a migration; return how many images it held.

    Before the cut-over, nothing else changes. After it, until `drop_old`, the collection becomes
    again what it was at the cut-over: what the new model ingested, changed and deleted since is
    lost. The metadata is replaced atomically, and no ranking has images of both sides.

    After the cut-over `collection` is closed; open it again, with the old model. A rollback that
    was interrupted is continued by another call.

    Args:
        collection: An open collection with a migration under way, or one that was cut over.

    Raises:
        ConfigError: There is nothing to go back from, or the old side is being deleted already.
        StoreError: The disk or the engine refused; run it again.
        EngineUnavailableError: The connection to the server was lost; run it again.
    """
    check_kind("collection", collection, ImageCollection, "an ImageCollection")
    collection.require_writable()
    old = old_side(collection)
    if old is not None:
        return _back_to(collection, old)
    under_way = collection.migration_now()
    if under_way is None:
        raise ConfigError(
            f"the collection {collection.name!r} has no other side to go back to: no migration is "
            "under way, and none was cut over whose old side is still there"
        )
    collection.set_migration(replace(under_way, state="removing"))
    return _removed(collection, under_way)


def _removed(collection: ImageCollection, migration: Migration) -> int:
    """Remove the side that a migration filled, then the record of the migration."""
    count = 0
    with (
        suppress(CollectionNotFoundError),
        closing(collection.open_side_index(migration.to)) as index,
    ):
        count = index.count()
    collection.remove_side(migration.to)
    collection.set_migration(None)
    return count


def _back_to(collection: ImageCollection, old: OldSide) -> int:
    """Make the old side the one that is searched again, and remove the new one."""
    if old.moved.state == "dropping":
        raise ConfigError(
            f"the side of the model before ({old.other or 'unnamed'}) of {collection.name!r} is "
            "being deleted, so that there is no way back to it; finish that with drop_old "
            "(edje-qdrant migrate --drop-old), or migrate to that model"
        )
    new_side = collection.origin.sides[-1]
    with closing(collection.open_side_index(old.name)) as index:
        before = TokenContract.from_dict(old.moved.before["contract"])
        if index.shared:
            # Recorded first, so that a cut-over finishes what a killed rollback leaves.
            index.set_metadata(replace(old.moved, state="settling").as_metadata())
            _sign(index, before.model_key)
        removing = Migration(new_side, old.moved.contract, "removing")
        record = {**old.moved.before, "migration": removing.as_dict()}
        index.set_metadata(record)
    collection.close()
    with collection.open_side(old.name) as back:
        return _removed(back, removing)


def drop_old(collection: ImageCollection) -> int:
    """Delete the old side after a cut-over; return how many images it held.

    A collection on a server that was created by its name stays as an empty one that says where the
    images are. A drop that was interrupted is continued by another call.

    Args:
        collection: An open collection that was cut over.

    Raises:
        ConfigError: There is no old side, or the cut-over was interrupted.
        StoreError: The disk or the engine refused; run it again.
        EngineUnavailableError: The connection to the server was lost; run it again.
    """
    check_kind("collection", collection, ImageCollection, "an ImageCollection")
    collection.require_writable()
    old = old_side(collection)
    if old is None:
        raise ConfigError(
            f"the collection {collection.name!r} has no side of an earlier model to delete; "
            "cut_over (edje-qdrant migrate --cut-over) leaves one"
        )
    if old.moved.state == "settling":
        raise ConfigError(
            f"the cut-over of {collection.name!r} was interrupted; run it again first: cut_over "
            "(edje-qdrant migrate --cut-over)"
        )
    origin = collection.origin
    deleted, leftover = 0, old.moved.leftover
    if old.name != origin.front:
        # The name leads to the new side first, so that the old one can be removed as a whole.
        with closing(collection.open_side_index(old.name)) as index:
            deleted, leftover = index.count(), old.name
        dropping = Moved(origin.sides[-1], old.moved.contract, "dropping", {}, leftover)
        with closing(collection.open_side_index(origin.front)) as front:
            front.set_metadata(dropping.as_metadata())
        collection.forget_sides_between()
    with closing(collection.open_side_index(origin.front)) as front:
        moved = read_moved(front.metadata, repr(origin.front))
        front.set_metadata(replace(moved, state="dropping").as_metadata())
        for page in front.scroll(batch_size=_PAGE):
            own = [
                point.id for point in page if not front.shared or is_ours(point.id, point.payload)
            ]
            front.delete(own)
            deleted += len(own)
        front.optimize()
        front.flush()
        collection.remove_side_tokens(origin.front)
        if leftover is not None:
            collection.remove_side(leftover)
        front.set_metadata(replace(moved, state="dropped", before={}, leftover=None).as_metadata())
    return deleted
