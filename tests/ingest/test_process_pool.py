from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deadly_encoder import (
    DEADLY,
    DeadlyEncoder,
    GreedyEncoder,
    StillbornEncoder,
    UnloadableEncoder,
    UnwillingEncoder,
    with_encoder,
)
from numpy.typing import NDArray
from PIL import Image
from rounding import float16_slack, float32_slack

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.errors import ConfigError, WorkerDiedError
from edje_qdrant.images.decoder_pool import DecodeLimits
from edje_qdrant.ingest import process_pool as encoding_pool
from edje_qdrant.ingest.decode import KnownImage, identify_image
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.ingest.process_pool import EncodingPool, check_devices
from edje_qdrant.model import EDJEModel
from edje_qdrant.sources.protocol import ListedImage
from edje_qdrant.types import ImageEncoding, IngestReport

WriteImages = Callable[..., list[Path]]
Stored = dict[str, tuple[dict[str, Any], NDArray[np.float32], NDArray[np.float16]]]


def ingest(
    source: Any,
    folder: Path,
    model: EDJEModel,
    kind: type[ImageCollection] | None = None,
    **more: Any,
) -> tuple[IngestReport, Stored]:
    """Ingest into a new collection; return the report and what is stored, by id."""
    ImageCollection.create(folder, "images", model.contract()).close()
    with (kind or ImageCollection).open(folder, "images") as collection:
        report = ingest_images(source, collection, model, progress=False, **more)
        assert multiprocessing.active_children() == []
        return report, stored(collection)


def stored(collection: ImageCollection) -> Stored:
    points = [point for page in collection.index.scroll() for point in page]
    encoding = collection.encodings([point.id for point in points])
    return {
        point.id: (
            {key: value for key, value in point.payload.items() if key != "_edje"},
            encoding.embeddings[row],
            encoding.tokens[row],
        )
        for row, point in enumerate(points)
    }


def assert_same(ours: Stored, theirs: Stored) -> None:
    assert list(ours) == list(theirs)
    for image_id, (payload, embedding, tokens) in ours.items():
        assert payload == theirs[image_id][0]
        np.testing.assert_allclose(embedding, theirs[image_id][1], atol=float32_slack(1))
        np.testing.assert_allclose(tokens, theirs[image_id][2], atol=float16_slack(tokens))


def outcome(report: IngestReport) -> tuple[Any, ...]:
    return report.added, report.skipped, sorted((f.path, f.reason) for f in report.failed)


def workers_where(number: int, field: int) -> set[int]:
    """Return the worker processes in whose `/proc/PID/stat` this field has this number."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "stat").read_text().rsplit(")")[-1].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(status[field]) == number and b"spawn_main" in command:
            found.add(int(entry.name))
    return found


def children() -> set[int]:
    return workers_where(os.getpid(), 1)


def of_session(leader: int) -> set[int]:
    return workers_where(leader, 3)


class Watched(ImageCollection):
    """Do something on the third batch that is written."""

    on_third: Callable[[], None]
    batches = 0

    def add_new(self, image_ids: Any, encoding: ImageEncoding, payloads: Any) -> set[str]:
        type(self).batches += 1
        if self.batches == 3:
            type(self).on_third()
        return super().add_new(image_ids, encoding, payloads)


def watched(action: Callable[[], None]) -> type[Watched]:
    return type("WatchedOnce", (Watched,), {"on_third": staticmethod(action)})


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_processes_give_the_collection_that_none_gives(
    tmp_path: Path, tiny_model: EDJEModel, write_images: WriteImages, processes: int
) -> None:
    pictures = tmp_path / "pictures"
    paths = write_images(pictures, 40)
    (pictures / "copy.png").write_bytes(paths[3].read_bytes())
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "cut.png").write_bytes(paths[5].read_bytes()[:60])
    alone, expected = ingest(pictures, tmp_path / "alone", tiny_model, batch_size=4)
    report, found = ingest(
        pictures, tmp_path / "found", tiny_model, batch_size=4, processes=processes
    )
    assert_same(found, expected)
    assert outcome(report) == outcome(alone)
    assert (report.added, report.skipped, len(report.failed)) == (40, 1, 2)
    assert children() == set()


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_loses_nothing(
    tmp_path: Path,
    tiny_model: EDJEModel,
    write_images: WriteImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pictures = tmp_path / "pictures"
    write_images(pictures, 60)
    killed = []

    def kill() -> None:
        (child,) = multiprocessing.active_children()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        killed.append(child.pid)

    alone, expected = ingest(pictures, tmp_path / "alone", tiny_model, batch_size=4)
    report, found = ingest(
        pictures, tmp_path / "one", tiny_model, watched(kill), batch_size=4, devices=["cpu"]
    )
    assert len(killed) == 1
    assert_same(found, expected)
    assert outcome(report) == outcome(alone)
    assert [*tmp_path.glob("edje-model-*")] == []


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "name"), [(1, "the-last.png"), (4, "picture-0005b.png")])
def test_a_picture_that_kills_who_reads_it_is_listed_and_the_others_are_there(
    tmp_path: Path, tiny_model: EDJEModel, write_images: WriteImages, batch_size: int, name: str
) -> None:
    pictures = tmp_path / "pictures"
    write_images(pictures, 12)
    Image.new("RGB", DEADLY, "red").save(pictures / name)
    model = with_encoder(tiny_model, DeadlyEncoder)
    report, found = ingest(pictures, tmp_path / "index", model, batch_size=batch_size, processes=2)
    assert report.added == len(found) == 12
    (failure,) = report.failed
    assert Path(failure.path).name == name
    assert failure.reason == "each process that read it ended with exit code 7"


@pytest.mark.slow
def test_an_interrupt_leaves_no_process_and_keeps_what_was_written(
    tmp_path: Path,
    tiny_model: EDJEModel,
    write_images: WriteImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    write_images(tmp_path / "pictures", 60)
    during = set()

    def interrupt() -> None:
        during.update(children())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(
            tmp_path / "pictures", tmp_path / "index", tiny_model, watched(interrupt),
            batch_size=4, processes=1,
        )  # fmt: skip
    assert len(during) == 1
    assert children() == set()
    assert multiprocessing.active_children() == []
    assert [*tmp_path.glob("edje-model-*")] == []
    with ImageCollection.open(tmp_path / "index", "images") as collection:
        assert collection.count() == 8


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_a_command_that_is_ended(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages, number: signal.Signals
) -> None:
    write_images(tmp_path / "pictures", 400)
    command = [sys.executable, "-m", "edje_qdrant", "ingest", str(tmp_path / "pictures")]
    command += ["--index", str(tmp_path / "index"), "--model", str(tiny_folder)]
    command += ["--processes", "2", "--batch-size", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as process:
        try:
            while len(of_session(process.pid)) < 2:  # they import torch now
                assert process.poll() is None
                time.sleep(0.01)
            if number is signal.SIGINT:  # as a terminal does, to all of them
                os.killpg(process.pid, number)
            else:
                process.kill()
            _, errors = process.communicate(timeout=120)
            while of_session(process.pid):
                time.sleep(0.05)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if number is signal.SIGINT:
        assert errors == "error: interrupted; what was written before is kept\n"
        assert process.returncode == 130
    assert [*tmp_path.glob("edje-model-*")] == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_an_interrupt_waits_until_a_process_is_started() -> None:
    before = signal.getsignal(signal.SIGINT)
    start, sent = threading.Event(), threading.Event()
    started = []

    def take_signal() -> None:
        start.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        sent.set()

    def start_process() -> None:
        with encoding_pool._hold_interrupts():
            start.set()
            sent.wait()
            other.join()
            started.append(True)

    other = threading.Thread(target=take_signal)  # which does not block it
    other.start()
    with pytest.raises(KeyboardInterrupt):
        start_process()
    assert started
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        pytest.param(
            UnwillingEncoder, RuntimeError, r"(?s)on cpu:.*no kernel image is available",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            GreedyEncoder, ConfigError, "cpu has no memory for 3 images.*lower batch_size",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            UnloadableEncoder, ConfigError, "load the model on cpu: ValueError: no such device",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            StillbornEncoder, WorkerDiedError, "died while they were starting.* exit code 3",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_a_process_is_told(
    tmp_path: Path,
    tiny_model: EDJEModel,
    write_images: WriteImages,
    kind: type[SiglipEncoder],
    error: type[Exception],
    words: str,
) -> None:
    paths = write_images(tmp_path / "pictures", 3)
    with pytest.raises(error, match=words):
        ingest(paths, tmp_path / "index", with_encoder(tiny_model, kind), processes=1)
    assert children() == set()


@pytest.mark.slow
def test_processes_that_die_one_after_another_end_the_run(
    tmp_path: Path,
    tiny_model: EDJEModel,
    write_images: WriteImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoding_pool, "_MOST_LOST", 2)
    paths = write_images(tmp_path / "pictures", 4)
    Image.new("RGB", DEADLY, "red").save(tmp_path / "deadly.png")
    model = with_encoder(tiny_model, DeadlyEncoder)
    with ImageCollection.create(tmp_path / "index", "images", model.contract()) as collection:
        ingest_images(paths, collection, model, progress=False)
        with pytest.raises(WorkerDiedError, match=r"2 processes died.*code 7 at .*deadly\.png"):
            ingest_images(tmp_path / "deadly.png", collection, model, processes=1, progress=False)
        assert children() == set()
        assert collection.count() == 4


@pytest.mark.slow
def test_few_batches_are_under_way_at_a_time_and_they_come_in_order(
    tmp_path: Path, tiny_model: EDJEModel, write_images: WriteImages
) -> None:
    paths = [str(path) for path in write_images(tmp_path, 30)]
    asked_for = 0

    def batches() -> Iterator[list[KnownImage]]:
        nonlocal asked_for
        for path in paths:
            known = identify_image(ListedImage(path, {}))
            assert isinstance(known, KnownImage)
            asked_for += 1
            yield [known]

    found = []
    with EncodingPool(tiny_model, ["cpu"], DecodeLimits(1, max_pixels=10_000)) as pool:
        for batch in pool.encode(batches()):
            found += [payload["path"] for payload in batch.payloads]
            assert asked_for - len(found) < 4
    assert found == paths


def test_a_rerun_starts_no_process(
    tmp_path: Path,
    tiny_model: EDJEModel,
    write_images: WriteImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = write_images(tmp_path / "pictures", 3)
    ingest(paths, tmp_path / "index", tiny_model)
    monkeypatch.setattr(torch, "save", None)
    with ImageCollection.open(tmp_path / "index", "images") as collection:
        report = ingest_images(paths, collection, tiny_model, processes=2, progress=False)
    assert report.skipped == 3


def test_a_model_that_cannot_be_handed_over_is_refused(
    tmp_path: Path,
    tiny_model: EDJEModel,
    write_images: WriteImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = write_images(tmp_path / "pictures", 3)
    monkeypatch.setattr(tiny_model, "encode_pixels", lambda pixels: None)
    with pytest.raises(ConfigError, match="cannot be sent to other processes"):
        ingest(paths, tmp_path / "index", tiny_model, processes=1)


def test_devices_are_shared_out_in_turn() -> None:
    cpu = torch.device("cpu")
    assert check_devices(0, None, cpu) == []
    assert check_devices(2, None, cpu) == ["cpu", "cpu"]
    assert check_devices(0, ["cpu", "meta"], cpu) == ["cpu", "meta"]
    assert check_devices(3, ["cpu", "meta"], cpu) == ["cpu", "meta", "cpu"]


@pytest.mark.parametrize(
    ("processes", "devices", "words"),
    [
        (0, "cpu", "give a list"),
        (0, [], "give a list"),
        (0, ["cpu", "nowhere"], "no device 'nowhere'"),
        (0, ["cuda:99"], "no device cuda:99"),
        (1, ["cpu", "cpu"], "2 devices but 1 processes"),
    ],
)
def test_devices_that_cannot_be_used(processes: int, devices: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_devices(processes, devices, torch.device("cpu"))
