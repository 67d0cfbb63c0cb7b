from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edje_qdrant.errors import (
    CollectionLockedError,
    ConfigError,
    StoreError,
    TokensCorruptError,
    TokensNotFoundError,
)
from edje_qdrant.tokens.codecs import codec_for
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.tokens.manifest import Manifest
from edje_qdrant.tokens.segment import HEADER_BYTES

RECORD = 42


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tokens"


def side_file(folder: Path) -> Path:
    (path,) = folder.glob("tokens-*.bin")
    return path


def num_flushed(folder: Path) -> int:
    return sum(segment.num_records for segment in Manifest.read(folder).segments)


def written(folder, contract, ids, tokens):
    """Make a store, put and flush, close; return the references."""
    with closing(FileTokenStore.create(folder, contract)) as store:
        references = store.put(ids, tokens)
        store.flush()
    return references


def test_round_trip_is_exact_in_any_order(folder, contract, make_tokens, make_ids):
    tokens, ids = make_tokens(9), make_ids(9)
    with closing(FileTokenStore.create(folder, contract)) as store:
        assert not store.in_payload
        references = store.put(ids[:4], tokens[:4]) + store.put(ids[4:], tokens[4:])
        store.flush()
        assert [r["record"] for r in references] == list(range(9))
        order = [8, 0, 3, 3, 5]
        back = store.get([ids[i] for i in order], [references[i] for i in order])
        assert back.dtype == np.float16
        assert back.tobytes() == tokens[order].tobytes()
        assert back.flags.writeable
        assert store.nbytes_per_image() == RECORD
    assert side_file(folder).stat().st_size == HEADER_BYTES + 9 * RECORD


def test_nothing_in_nothing_out(folder, contract, make_tokens):
    with closing(FileTokenStore.create(folder, contract)) as store:
        assert store.put([], make_tokens(0)) == []
        store.flush()
        assert store.get([], []).shape == (0, 3, 7)


def test_survives_reopening_and_goes_on(folder, contract, make_tokens, make_ids):
    tokens, ids = make_tokens(6), make_ids(6)
    references = written(folder, contract, ids[:4], tokens[:4])
    with closing(FileTokenStore.open(folder)) as store:
        assert store.contract == contract
        references += store.put(ids[4:], tokens[4:])
        store.flush()
    assert num_flushed(folder) == 6
    with closing(FileTokenStore.open(folder)) as store:
        references = json.loads(json.dumps(references))
        assert store.get(ids, references).tobytes() == tokens.tobytes()


def test_a_reader_sees_later_appends(folder, contract, make_tokens, make_ids):
    tokens, ids = make_tokens(50), make_ids(50)
    with (
        closing(FileTokenStore.create(folder, contract)) as writer,
        closing(FileTokenStore.open(folder)) as reader,
    ):
        references = []
        for start in range(0, 50, 10):
            batch = slice(start, start + 10)
            references += writer.put(ids[batch], tokens[batch])
            writer.flush()
            back = reader.get(ids[: start + 10], references)
            assert back.tobytes() == tokens[: start + 10].tobytes()


def test_threads_read_while_one_writes(folder, contract, make_tokens, make_ids):
    tokens, ids = make_tokens(100), make_ids(100)
    references: list = []
    wrong: list[object] = []
    done = threading.Event()
    with closing(FileTokenStore.create(folder, contract)) as store:

        def read() -> None:
            rng = np.random.default_rng(threading.get_ident() % 1000)
            try:
                while not done.is_set():
                    n = len(references)
                    picks = rng.integers(0, n, 20).tolist() if n else []
                    back = store.get([ids[i] for i in picks], [references[i] for i in picks])
                    if back.tobytes() != tokens[picks].tobytes():
                        wrong.append(picks)
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for i in range(100):
            references.extend(store.put(ids[i : i + 1], tokens[i : i + 1]))
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_create_refuses_a_second_time(folder, contract):
    FileTokenStore.create(folder, contract).close()
    with pytest.raises(StoreError, match="open the collection it belongs to"):
        FileTokenStore.create(folder, contract)


def test_create_that_failed_half_way_does_not_open(folder, contract, monkeypatch):
    def fail(old: object, new: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(StoreError, match="no space left"):
            FileTokenStore.create(folder, contract)
    with pytest.raises(TokensNotFoundError, match="no token store"):
        FileTokenStore.open(folder)
    FileTokenStore.create(folder, contract).close()


def test_create_refuses_an_unknown_codec(folder, contract):
    with pytest.raises(ConfigError, match="known: float16"):
        FileTokenStore.create(folder, contract.with_codec("zip"))
    assert not folder.exists()


def test_create_where_no_folder_can_be(tmp_path, contract):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot create a token store in"):
        FileTokenStore.create(tmp_path / "file" / "tokens", contract)


def test_open_without_a_store(folder):
    with pytest.raises(TokensNotFoundError, match="no token store"):
        FileTokenStore.open(folder)


def test_open_without_the_side_file(folder, contract, make_tokens, make_ids):
    written(folder, contract, make_ids(2), make_tokens(2))
    side_file(folder).unlink()
    with pytest.raises(TokensNotFoundError, match="is gone"):
        FileTokenStore.open(folder)


def test_a_side_file_of_another_collection_does_not_open(tmp_path, contract, make_tokens, make_ids):
    for name in "ab":
        written(tmp_path / name, contract, make_ids(2), make_tokens(2))
    side_file(tmp_path / "b").replace(side_file(tmp_path / "a"))
    with pytest.raises(TokensCorruptError, match="belongs to another collection"):
        FileTokenStore.open(tmp_path / "a")


@pytest.mark.parametrize("size", [0, 10, HEADER_BYTES - 1])
def test_a_torn_header_does_not_open(folder, contract, make_tokens, make_ids, size):
    written(folder, contract, make_ids(1), make_tokens(1))
    os.truncate(side_file(folder), size)
    with pytest.raises(TokensCorruptError, match="damaged"):
        FileTokenStore.open(folder)


def test_a_folder_swapped_with_another_collections_raises_on_read(
    tmp_path, contract, make_tokens, make_ids
):
    ids, tokens = make_ids(2), make_tokens(2)
    references = written(tmp_path / "a", contract, ids, tokens)
    written(tmp_path / "b", contract, ids, tokens)
    with (
        closing(FileTokenStore.open(tmp_path / "b")) as store,
        pytest.raises(TokensNotFoundError, match="is gone") as caught,
    ):
        store.get(ids, references)
    assert caught.value.image_ids == tuple(ids)


@pytest.mark.parametrize("change", [{"num_tokens": 7, "token_dim": 4}, {"codec": "zip"}])
def test_a_manifest_that_does_not_fit_its_file(folder, contract, make_tokens, make_ids, change):
    written(folder, contract, make_ids(1), make_tokens(1))
    manifest = Manifest.read(folder)
    replace(manifest, contract=replace(manifest.contract, **change)).write(folder)
    with pytest.raises((TokensCorruptError, ConfigError)):
        FileTokenStore.open(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        {"record": -1},
        {"record": "0"},
        {"record": 2**80},
        {"segment": None},
        {"segment": "../../x"},
        {"segment": "0000000G"},
        {"segment": 7},
    ],
)
def test_references_that_cannot_be(folder, contract, make_tokens, make_ids, spoil):
    ids = make_ids(3)
    references = written(folder, contract, ids, make_tokens(3))
    references[1] = {**references[1], **spoil}
    with (
        closing(FileTokenStore.open(folder)) as store,
        pytest.raises(TokensCorruptError, match=ids[1]) as caught,
    ):
        store.get(ids, references)
    assert caught.value.image_ids == (ids[1],)


@pytest.mark.parametrize("record", [3, 10_000, 2**39])
def test_a_record_past_the_end_is_not_found(folder, contract, make_tokens, make_ids, record):
    ids = make_ids(3)
    references = written(folder, contract, ids, make_tokens(3))
    references[2] = {**references[2], "record": record}
    with (
        closing(FileTokenStore.open(folder)) as store,
        pytest.raises(TokensNotFoundError, match=ids[2]) as caught,
    ):
        store.get(ids, references)
    assert caught.value.image_ids == (ids[2],)


def test_a_side_file_that_never_was_is_not_found(folder, contract, make_tokens, make_ids):
    ids = make_ids(3)
    references = written(folder, contract, ids, make_tokens(3))
    references[1] = {**references[1], "segment": "00000000"}
    with (
        closing(FileTokenStore.open(folder)) as store,
        pytest.raises(TokensNotFoundError, match=r"tokens-00000000\.bin is gone") as caught,
    ):
        store.get(ids, references)
    assert caught.value.image_ids == (ids[1],)


def test_an_empty_reference_is_not_found(folder, contract, make_ids):
    with (
        closing(FileTokenStore.create(folder, contract)) as store,
        pytest.raises(TokensNotFoundError, match=make_ids(1)[0]),
    ):
        store.get(make_ids(1), [{}])


def test_records_swapped_in_the_file_raise(folder, contract, make_tokens, make_ids):
    ids = make_ids(2)
    references = written(folder, contract, ids, make_tokens(2))
    path = side_file(folder)
    data = path.read_bytes()
    body = data[HEADER_BYTES:]
    path.write_bytes(data[:HEADER_BYTES] + body[RECORD:] + body[:RECORD])
    with closing(FileTokenStore.open(folder)) as store, pytest.raises(TokensCorruptError) as caught:
        store.get(ids, references)
    assert caught.value.image_ids == tuple(ids)


def test_flipped_bytes_always_raise_and_name_the_picture(folder, contract, make_tokens, make_ids):
    ids, tokens = make_ids(20), make_tokens(20)
    references = written(folder, contract, ids, tokens)
    path = side_file(folder)
    whole = path.read_bytes()
    rng = np.random.default_rng(11)
    with closing(FileTokenStore.open(folder)) as store, path.open("r+b", buffering=0) as file:
        for _ in range(100):
            hurt = sorted(rng.choice(20, size=rng.integers(1, 4), replace=False).tolist())
            for record in hurt:
                for at in rng.choice(RECORD, size=rng.integers(1, 6), replace=False):
                    offset = HEADER_BYTES + record * RECORD + int(at)
                    file.seek(offset)
                    file.write(bytes([whole[offset] ^ int(rng.integers(1, 256))]))
            with pytest.raises(TokensCorruptError) as caught:
                store.get(ids, references)
            assert caught.value.image_ids == tuple(ids[i] for i in hurt)
            file.seek(0)
            file.write(whole)
            assert store.get(ids, references).tobytes() == tokens.tobytes()


@pytest.mark.parametrize("torn", [1, RECORD // 2, RECORD - 1])
def test_a_torn_tail_is_cut_off_and_whole_records_are_kept(
    folder, contract, make_tokens, make_ids, torn
):
    tokens, ids = make_tokens(6), make_ids(6)
    references = written(folder, contract, ids[:3], tokens[:3])
    with closing(FileTokenStore.open(folder)) as store:
        references += store.put(ids[3:4], tokens[3:4])  # never flushed
    with side_file(folder).open("ab") as file:
        file.write(b"\xff" * torn)
    assert num_flushed(folder) == 3
    with closing(FileTokenStore.open(folder)) as store:
        assert store.get(ids[:4], references).tobytes() == tokens[:4].tobytes()
        references += store.put(ids[4:], tokens[4:])
        store.flush()
        assert [r["record"] for r in references] == list(range(6))
        assert store.get(ids, references).tobytes() == tokens.tobytes()
    assert side_file(folder).stat().st_size == HEADER_BYTES + 6 * RECORD
    assert num_flushed(folder) == 6


def test_an_old_manifest_does_not_send_a_writer_over_live_records(
    folder, contract, make_tokens, make_ids
):
    tokens, ids = make_tokens(6), make_ids(6)
    references = written(folder, contract, ids[:2], tokens[:2])
    old = (folder / "tokens.json").read_bytes()
    with closing(FileTokenStore.open(folder)) as store:
        references += store.put(ids[2:4], tokens[2:4])
        store.flush()
    (folder / "tokens.json").write_bytes(old)
    with closing(FileTokenStore.open(folder)) as store:
        references += store.put(ids[4:], tokens[4:])
        store.flush()
        assert store.get(ids, references).tobytes() == tokens.tobytes()


def test_a_file_cut_short_names_what_is_lost_and_takes_no_more(
    folder, contract, make_tokens, make_ids
):
    tokens, ids = make_tokens(5), make_ids(5)
    references = written(folder, contract, ids, tokens)
    with closing(FileTokenStore.open(folder)) as store:
        assert len(store.get(ids, references)) == 5  # mapped to the end before the cut
        os.truncate(side_file(folder), HEADER_BYTES + 3 * RECORD + 5)
        with pytest.raises(TokensNotFoundError) as caught:
            store.get(ids, references)
        assert caught.value.image_ids == tuple(ids[3:])
        assert store.get(ids[:3], references[:3]).tobytes() == tokens[:3].tobytes()
        with pytest.raises(TokensCorruptError, match="holds 3 of 5 records"):
            store.put(ids, tokens)
    assert side_file(folder).stat().st_size == HEADER_BYTES + 3 * RECORD + 5
    # The refused writer released its lock.
    with (
        closing(FileTokenStore.open(folder)) as store,
        pytest.raises(TokensCorruptError, match="holds 3 of 5"),
    ):
        store.put(ids, tokens)


def test_one_writer_at_a_time_in_a_process(folder, contract, make_tokens, make_ids):
    ids, tokens = make_ids(1), make_tokens(1)
    with (
        closing(FileTokenStore.create(folder, contract)) as first,
        closing(FileTokenStore.open(folder)) as second,
    ):
        references = first.put(ids, tokens)
        with pytest.raises(CollectionLockedError, match="in this process already"):
            second.put(ids, tokens)
        assert second.get(ids, references).tobytes() == tokens.tobytes()
        first.flush()
        first.close()
        assert second.put(ids, tokens)[0]["record"] == 1


_WRITE_AND_WAIT = """
import sys
import numpy as np
from edje_qdrant.tokens.file_store import FileTokenStore
store = FileTokenStore.open(sys.argv[1])
store.put(["x"], np.ones((1, 3, 7), np.float16))
print("holding", flush=True)
sys.stdin.read()
"""


def test_a_second_process_may_read_but_not_write(folder, contract, make_tokens, make_ids):
    ids, tokens = make_ids(2), make_tokens(2)
    references = written(folder, contract, ids, tokens)
    with (
        closing(FileTokenStore.open(folder)) as store,
        subprocess.Popen(
            [sys.executable, "-c", _WRITE_AND_WAIT, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stdout.readline() == b"holding\n"
        assert store.get(ids, references).tobytes() == tokens.tobytes()
        with pytest.raises(CollectionLockedError):
            store.put(ids, tokens)
        child.kill()  # the lock goes with its process
        child.wait()
        assert store.put(ids, tokens)[0]["record"] == 3


def test_a_full_disk_gives_out_no_reference(folder, contract, make_tokens, make_ids, monkeypatch):
    tokens, ids = make_tokens(6), make_ids(6)
    with closing(FileTokenStore.create(folder, contract)) as store:
        references = store.put(ids[:2], tokens[:2])
        store.flush()

        class FullDisk:
            def __init__(self, file):
                self.file, self.left = file, RECORD + 5

            def write(self, data):
                if not self.left:
                    raise OSError(errno.ENOSPC, "No space left on device")
                count = self.file.write(data[: self.left])
                self.left -= count
                return count

            def __getattr__(self, name):
                return getattr(self.file, name)

        with monkeypatch.context() as patch:
            patch.setattr(store._writer, "_file", FullDisk(store._writer._file))
            with pytest.raises(StoreError, match="no space left"):
                store.put(ids[2:4], tokens[2:4])
        references += store.put(ids[4:], tokens[4:])
        store.flush()
        kept = ids[:2] + ids[4:]
        assert store.get(kept, references).tobytes() == tokens[[0, 1, 4, 5]].tobytes()
    assert num_flushed(folder) == 4


def test_a_refused_flush_closes_the_store(folder, contract, make_tokens, make_ids, monkeypatch):
    ids, tokens = make_ids(2), make_tokens(2)
    store = FileTokenStore.create(folder, contract)
    store.put(ids, tokens)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match="cannot flush"):
            store.flush()
    for use in (store.flush, lambda: store.put(ids, tokens)):
        with pytest.raises(StoreError, match="is closed"):
            use()
    assert num_flushed(folder) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_data_is_on_the_disk_before_the_manifest_counts_it(
    folder, contract, make_tokens, make_ids, monkeypatch
):
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def replace_file(old, new):
        events.append("replace")
        real_replace(old, new)

    with closing(FileTokenStore.create(folder, contract)) as store:
        store.put(make_ids(1), make_tokens(1))
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", replace_file)
        store.flush()
        assert events == [side_file(folder).name, "tokens.json.new", "replace", "tokens"]
        store.flush()  # nothing new: nothing written
        assert len(events) == 4


def test_a_closed_store_says_so(folder, contract, make_tokens, make_ids):
    store = FileTokenStore.create(folder, contract)
    references = store.put(make_ids(1), make_tokens(1))
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.get(make_ids(1), references)
    with pytest.raises(StoreError, match="is closed"):
        store.put(make_ids(1), make_tokens(1))


def test_a_replaced_store_is_not_written_to(folder, contract, make_tokens, make_ids):
    with closing(FileTokenStore.create(folder, contract)) as store:
        (folder / "tokens.json").unlink()
        FileTokenStore.create(folder, replace(contract, adapter_hash="a1")).close()
        with pytest.raises(StoreError, match="was replaced"):
            store.put(make_ids(1), make_tokens(1))


def test_tokens_that_do_not_fit_are_refused(folder, contract, make_tokens, make_ids):
    with closing(FileTokenStore.create(folder, contract)) as store:
        with pytest.raises(ConfigError, match="float16"):
            store.put(make_ids(1), make_tokens(1).astype(np.float32))
        with pytest.raises(ConfigError, match="2 ids"):
            store.put(make_ids(2), make_tokens(1))


def test_remove_deletes_what_the_store_made_and_no_more(folder, contract):
    FileTokenStore.create(folder, contract).remove()
    assert not folder.exists()
    store = FileTokenStore.create(folder, contract)
    (folder / "mine.txt").write_text("keep")
    store.remove()
    assert os.listdir(folder) == ["mine.txt"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_no_permission(folder, contract, make_tokens, make_ids):
    references = written(folder, contract, make_ids(1), make_tokens(1))
    folder.chmod(0o500)
    (folder / "writer.lock").chmod(0o400)
    try:
        with closing(FileTokenStore.open(folder)) as store:
            assert len(store.get(make_ids(1), references)) == 1
            with pytest.raises(StoreError, match="no permission"):
                store.put(make_ids(1), make_tokens(1))
    finally:
        folder.chmod(0o700)


@pytest.fixture
def small(folder, contract, make_tokens, make_ids):
    """Make a store whose side files hold three records each; return ids, tokens, references."""
    ids, tokens = make_ids(8), make_tokens(8)
    with closing(FileTokenStore.create(folder, contract, segment_bytes=3 * RECORD)) as store:
        references = store.put(ids[:2], tokens[:2])
        references += store.put(ids[2:], tokens[2:])
        store.flush()
    return ids, tokens, references


def test_side_files_stay_small(folder, small):
    ids, tokens, references = small
    assert [r["record"] for r in references] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert len({r["segment"] for r in references}) == len([*folder.glob("tokens-*.bin")]) == 3
    with closing(FileTokenStore.open(folder)) as store:
        order = [7, 0, 4, 4, 1, 6, 2]
        back = store.get([ids[i] for i in order], [references[i] for i in order])
        assert back.tobytes() == tokens[order].tobytes()
        assert [s.num_records for s in store.segments()] == [3, 3, 2]
        assert store.disk_bytes() == 3 * HEADER_BYTES + 8 * RECORD


def test_goes_on_in_the_last_side_file(folder, small):
    ids, tokens, references = small
    with closing(FileTokenStore.open(folder)) as store:
        references = references + store.put(ids[:2], tokens[:2])
        store.flush()
    assert [s.num_records for s in Manifest.read(folder).segments] == [3, 3, 3, 1]
    with closing(FileTokenStore.open(folder)) as store:
        back = store.get(ids + ids[:2], references)
        assert back.tobytes() == np.concatenate([tokens, tokens[:2]]).tobytes()


def test_many_side_files_are_not_all_kept_open(
    folder, contract, make_tokens, make_ids, monkeypatch
):
    monkeypatch.setattr("edje_qdrant.tokens.file_store._OPEN_SEGMENTS", 4)
    ids, tokens = make_ids(30), make_tokens(30)
    with closing(FileTokenStore.create(folder, contract, segment_bytes=RECORD)) as store:
        references = store.put(ids, tokens)
        store.flush()
        assert store.get(ids, references).tobytes() == tokens.tobytes()
        assert len(store._readers) == 4
        assert store.get(ids[:1], references[:1]).tobytes() == tokens[:1].tobytes()


def test_a_lost_side_file_is_named_and_the_others_are_read(folder, small):
    ids, tokens, references = small
    (folder / f"tokens-{references[3]['segment']}.bin").unlink()
    with pytest.raises(TokensNotFoundError, match="is gone"):
        FileTokenStore.open(folder)
    with closing(FileTokenStore.open(folder, lenient=True)) as store:
        with pytest.raises(TokensNotFoundError, match="is gone") as caught:
            store.get(ids, references)
        assert caught.value.image_ids == tuple(ids[3:6])
        rest = [0, 1, 2, 6, 7]
        back = store.get([ids[i] for i in rest], [references[i] for i in rest])
        assert back.tobytes() == tokens[rest].tobytes()


def test_after_a_loss_a_new_side_file_may_be_begun(folder, small):
    ids, tokens, references = small
    last = folder / f"tokens-{references[-1]['segment']}.bin"
    os.truncate(last, HEADER_BYTES + RECORD)
    with closing(FileTokenStore.open(folder)) as store:
        with pytest.raises(TokensCorruptError, match="holds 1 of 2"):
            store.put(ids[7:], tokens[7:])
        store.begin_segment()
        references[7:] = store.put(ids[7:], tokens[7:])
        store.flush()
    with closing(FileTokenStore.open(folder)) as store:
        assert store.get(ids, references).tobytes() == tokens.tobytes()


def test_a_lost_manifest_is_written_anew(folder, contract, small):
    ids, tokens, references = small
    store_id = Manifest.read(folder).store_id
    (folder / "tokens.json").write_text("{")
    (folder / "tokens-00000000.bin").write_bytes(b"something else")
    FileTokenStore.rebuild(folder, contract, store_id)
    with closing(FileTokenStore.open(folder)) as store:
        assert store.get(ids, references).tobytes() == tokens.tobytes()
        references += store.put(ids[:1], tokens[:1])
        store.flush()
        assert store.get(ids, references[1:8] + references[8:]) is not None


def test_a_full_disk_while_a_side_file_begins(folder, small, monkeypatch):
    ids, tokens, references = small
    import edje_qdrant.tokens.segment as segment

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(FileTokenStore.open(folder)) as store:
        with monkeypatch.context() as patch:
            patch.setattr(segment.os, "fsync", fail)
            with pytest.raises(StoreError, match="no space left"):
                store.put(ids[:5], tokens[:5])
        assert len([*folder.glob("tokens-*.bin")]) == 3
        more = store.put(ids[:5], tokens[:5])
        store.flush()
        assert store.get(ids[:5], more).tobytes() == tokens[:5].tobytes()
        assert store.get(ids, references).tobytes() == tokens.tobytes()


def test_a_codec_begins_a_side_file_and_both_are_read(folder, contract, small):
    ids, tokens, references = small
    int8 = codec_for("int8", 3, 7)
    with closing(FileTokenStore.open(folder)) as store:
        store.begin_segment(int8)
        assert store.contract == contract.with_codec("int8")
        new = store.put(ids[:2], tokens[:2])
        store.flush()
        mixed = [*new, *references[2:]]
        parts = store.codes(ids, mixed)
        assert [(part.codec.name, part.rows.tolist()) for part in parts] == [
            ("int8", [0, 1]),
            ("float16", [2, 3, 4, 5, 6, 7]),
        ]
        expected = tokens.copy()
        expected[:2] = int8.decode(int8.encode(tokens[:2]))
        assert store.get(ids, mixed).tobytes() == expected.tobytes()
    with closing(FileTokenStore.open(folder)) as store:
        assert store.codec.name == "int8"
        assert store.get(ids, mixed).tobytes() == expected.tobytes()


def test_a_reader_follows_a_change_of_codec(folder, contract, small):
    ids, tokens, _ = small
    pq = codec_for("pq16", 3, 7).fit(
        np.random.default_rng(0).standard_normal((200, 3, 7)).astype("f2")
    )
    with (
        closing(FileTokenStore.open(folder)) as reader,
        closing(FileTokenStore.open(folder)) as store,
    ):
        store.begin_segment(pq)
        new = store.put(ids[:2], tokens[:2])
        store.flush()
        expected = pq.decode(pq.encode(tokens[:2]))
        assert reader.get(ids[:2], new).tobytes() == expected.tobytes()
    (kept,) = folder.glob("codec-pq16-*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(TokensCorruptError):
        FileTokenStore.open(folder)


def test_dropping_side_files(folder, small):
    ids, tokens, references = small
    first = references[0]["segment"]
    with (
        closing(FileTokenStore.open(folder)) as reader,
        closing(FileTokenStore.open(folder)) as store,
    ):
        assert len(reader.get(ids, references)) == 8
        store.drop_segments({first})
        assert len([*folder.glob("tokens-*.bin")]) == 2
        assert reader.get(ids, references).tobytes() == tokens.tobytes()  # it has the file open
        with pytest.raises(TokensNotFoundError) as caught:
            store.get(ids, references)
        assert caught.value.image_ids == tuple(ids[:3])
    with closing(FileTokenStore.open(folder)) as store:
        assert store.get(ids[3:], references[3:]).tobytes() == tokens[3:].tobytes()


def test_when_the_side_file_that_is_written_is_dropped_the_one_before_is_written(folder, small):
    ids, tokens, references = small
    with closing(FileTokenStore.open(folder)) as store:
        old = store.put(ids[:1], tokens[:1])
        store.flush()
        kept = {r["segment"] for r in references} - {old[0]["segment"]}
        store.drop_segments({old[0]["segment"]})
        new = store.put(ids[:1], tokens[:1])
        store.flush()
        assert new[0]["segment"] not in {old[0]["segment"]}
        assert store.get(ids[:1], new).tobytes() == tokens[:1].tobytes()
        left = [i for i, r in enumerate(references) if r["segment"] in kept]
        assert store.get([ids[i] for i in left], [references[i] for i in left]).tobytes() == (
            tokens[left].tobytes()
        )


def test_a_side_file_of_a_later_version_is_named(folder, small):
    path = folder / f"tokens-{small[2][0]['segment']}.bin"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"format": 1', b'"format": 2', 1))
    with pytest.raises(StoreError, match=r"format 2, this version reads 1"):
        FileTokenStore.open(folder)
