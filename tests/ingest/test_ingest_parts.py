"""Ingest of films and documents: ids, reruns, damage, limits, interruptions."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_finishes import Hanging
from document_files import write_document
from film_files import write_film

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ImageReadError
from edje_qdrant.explain.heat_map import draw_heat
from edje_qdrant.images import DecoderPool, Part
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.maintenance import verify
from edje_qdrant.maintenance.repair import _encode_again
from edje_qdrant.maintenance.reports import Finding
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.types import IngestReport

pytest.importorskip("av")
pytest.importorskip("pypdfium2")

Run = Callable[..., IngestReport]


@pytest.fixture
def collection(tmp_path: Path, tiny_model: EDJEModel) -> Iterator[ImageCollection]:
    with ImageCollection.create(tmp_path / "i", "images", tiny_model.contract()) as opened:
        yield opened


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A folder with two films of 4 s and a document of 3 pages."""
    folder = tmp_path / "films"
    folder.mkdir()
    write_film(folder / "a.mp4", 100, metadata={
        "creation_time": "2024-07-14T17:30:05Z", "location": "+38.7101-009.1402/",
    })  # fmt: skip
    write_film(folder / "b.mkv", 100, codec="mpeg4")
    write_document(folder / "c.pdf")
    return folder


@pytest.fixture
def run(collection: ImageCollection, tiny_model: EDJEModel) -> Run:
    def ingest(source: Any, **options: Any) -> IngestReport:
        return ingest_images(source, collection, tiny_model, progress=False, **options)

    return ingest


def payloads(collection: ImageCollection) -> dict[str, dict[str, Any]]:
    points = [point for page in collection.index.scroll() for point in page]
    return {
        os.path.basename(str(point.payload["path"])): {
            key: value for key, value in point.payload.items() if key != "_edje"
        }
        for point in points
    }


def counts(report: IngestReport) -> tuple[int, int, int, int]:
    return report.added, report.skipped, report.pruned, len(report.failed)


def test_frames_and_pages_are_stored(films: Path, run: Run, collection: ImageCollection) -> None:
    assert counts(run(films, frames_every="2s", pdf_pages=True, gps=True)) == (7, 0, 0, 0)
    stored = payloads(collection)
    film = str(films / "a.mp4")
    frame = stored["a.mp4#t=2"]
    assert frame.pop("modified_at")
    assert frame == {
        "path": f"{film}#t=2", "video": film, "time": 2.0, "width": 64, "height": 48,
        "file_size": os.path.getsize(film), "taken_at": "2024-07-14T17:30:05Z",
        "place": {"lat": 38.7101, "lon": -9.1402},
    }  # fmt: skip
    page = stored["c.pdf#page=3"]
    assert (page["document"], page["page"]) == (str(films / "c.pdf"), 3)
    assert (page["width"], page["height"]) == (1600, 800)


def test_a_rerun_decodes_nothing_and_common_times_are_the_same(
    films: Path, run: Run, collection: ImageCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(films, frames_every="2s", pdf_pages=True)
    decode = DecoderPool.decode
    monkeypatch.setattr(DecoderPool, "decode", None)
    assert counts(run(films, frames_every="2s", pdf_pages=True)) == (0, 7, 0, 0)
    monkeypatch.setattr(DecoderPool, "decode", decode)
    assert counts(run(films, frames_every="1s")) == (4, 4, 0, 0)
    assert collection.count() == 11


def test_prune_keeps_what_it_does_not_look_into(
    films: Path, run: Run, collection: ImageCollection, write_images: Callable[..., list[Path]]
) -> None:
    write_images(films, 1)
    run(films, frames_every="2s", pdf_pages=True)
    assert counts(run(films, prune=True)) == (0, 1, 0, 0)
    assert counts(run(films, prune=True, frames_every="4s")) == (0, 3, 2, 0)
    (films / "c.pdf").unlink()
    assert counts(run(films, prune=True)) == (0, 1, 3, 0)
    (films / "b.mkv").write_bytes(b"damaged")
    assert counts(run(films, prune=True, frames_every="4s")) == (0, 2, 0, 1)
    shutil.move(films / "a.mp4", films / "moved.mp4")
    assert counts(run(films, prune=True, frames_every="4s")) == (0, 2, 0, 1)
    moved = payloads(collection)["moved.mp4#t=0"]
    assert moved["video"] == str(films / "moved.mp4")


def test_the_best_frame_of_each_film(
    films: Path, run: Run, collection: ImageCollection, tiny_model: EDJEModel
) -> None:
    run(films, frames_every="1s")
    with TwoStageRetriever(collection, tiny_model) as retriever:
        found = retriever.search("a", group_by="video", top_k=2)
        assert {hit.group for hit in found} == {str(films / "a.mp4"), str(films / "b.mkv")}
        explanation = retriever.explain("a", found[0])
        assert draw_heat(str(found[0].payload["path"]), explanation).size == (64, 48)


def test_frames_and_pages_are_verified_and_repaired(
    films: Path, run: Run, collection: ImageCollection, tiny_model: EDJEModel
) -> None:
    run(films, frames_every="4s", pdf_pages=True)
    assert verify(collection, images=True, model=tiny_model).findings == ()
    films.joinpath("b.mkv").unlink()
    write_document(films / "c.pdf", [b""])
    report = verify(collection, images=True)
    kinds = {finding.kind: str(finding.path) for finding in report.findings}
    assert kinds["picture gone"] == f"{films}/b.mkv#t=0"
    assert kinds["picture changed"].startswith(f"{films}/c.pdf#page=")
    assert len(report.findings) == 4
    path = f"{films}/a.mp4#t=0"
    points = [point for page in collection.index.scroll() for point in page]
    (image_id,) = [point.id for point in points if point.payload["path"] == path]
    lost = Finding("tokens missing", image_id, path, "")
    with DecoderPool(1) as decoders:
        written, failed = _encode_again(collection, tiny_model, decoders, [lost])
    assert (written, failed) == ([image_id], [])


@pytest.mark.slow
def test_frames_in_worker_processes(films: Path, run: Run) -> None:
    assert counts(run(films, frames_every="1s", pdf_pages=True, processes=1)) == (11, 0, 0, 0)


def test_damage_is_reported_once_for_each_film(tmp_path: Path, run: Run) -> None:
    def noise(number: int) -> Any:
        return np.random.default_rng(number).integers(0, 255, (48, 64, 3)).astype(np.uint8)

    path = write_film(
        tmp_path / "a.mp4", [noise(n) for n in range(250)], options={"preset": "ultrafast"},
        every_key=25,
    )  # fmt: skip
    content = bytearray(path.read_bytes())
    fifth = len(content) // 5
    content[2 * fifth : 3 * fifth] = bytes(fifth)
    path.write_bytes(content)
    report = run(path, frames_every="500ms")
    assert report.added >= 15
    (failure,) = report.failed
    assert failure.reason.startswith("the film is damaged here (and ")


def test_a_film_whose_decoders_hang_costs_a_few_of_them(films: Path, tmp_path: Path) -> None:
    film = str(films / "a.mp4")
    with DecoderPool(1, seconds=0.5) as pool:
        for at in range(3):
            said = str(tmp_path / "said")
            with pytest.raises(ImageReadError, match="its decoder was ended"):
                pool.decode(Part(film, "frame", at), finish=Hanging(said))
        pool._seconds = 60.0
        with pytest.raises(ImageReadError, match="3 decoders of this file crashed or took too"):
            pool.decode(Part(film, "frame", 4))
        assert pool.decode(Part(str(films / "b.mkv"), "frame", 0)).width == 64


def test_a_missing_extra_is_named(films: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    for module in ("av", "pypdfium2"):
        (away / f"{module}.py").write_text(f"raise ModuleNotFoundError(name={module!r})\n")
    script = (
        "import sys; from edje_qdrant.sources.open import open_source; "
        "source = open_source(sys.argv[1], frames_every=2, pdf_pages=True); "
        "print([item.reason for item in source.images()])"
    )
    path = [away, Path(__file__).parents[2], *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    done = subprocess.run(
        [sys.executable, "-c", script, str(films)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(each) for each in path if each)},
    )  # fmt: skip
    film = "a film, but av is not installed; run: pip install 'edje-qdrant[video]'"
    document = "a PDF document, but pypdfium2 is not installed; run: pip install 'edje-qdrant[pdf]'"
    assert ast.literal_eval(done.stdout) == [film, film, document]


def _command(source: Path, tmp_path: Path, model: Path, *more: str) -> subprocess.Popen[bytes]:
    paths = [Path(__file__).parents[2], os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "edje_qdrant", "ingest", str(source), "--index",
         str(tmp_path / "index"), "--model", str(model), "--batch-size", "4",
         "--frames-every", "40ms", *more],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_ingest_is_continued(
    tmp_path: Path, tiny_folder: Path, tiny_model: EDJEModel
) -> None:
    source = tmp_path / "films"
    source.mkdir()
    write_film(source / "a.mp4", 3000)
    write_document(source / "b.pdf")
    process = _command(source, tmp_path, tiny_folder, "--pdf-pages")
    side_file = tmp_path / "index" / "images" / "tokens"
    until = time.monotonic() + 120
    while sum(path.stat().st_size for path in side_file.glob("*.bin")) < 100_000:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    with ImageCollection.open(tmp_path / "index", "images") as collection:
        before = collection.count()
        assert before < 3003
        report = ingest_images(
            source, collection, tiny_model, progress=False, frames_every="40ms", pdf_pages=True
        )
        assert report.added == 3003 - before
        assert not report.failed
        assert collection.count() == 3003
