from __future__ import annotations

import json
from pathlib import Path

from command_line import run

from edje_qdrant.types import FailedImage, IngestReport


def test_failures_are_counted_by_reason() -> None:
    reasons = ("no HEIF", "damaged", "no HEIF")
    report = IngestReport(0, 0, tuple(FailedImage(str(n), r) for n, r in enumerate(reasons)))
    assert [*report.failed_by_reason.items()] == [("no HEIF", 2), ("damaged", 1)]
    assert IngestReport(1, 0).failed_by_reason == {}


def test_ingest_prints_and_returns_the_counts(tmp_path: Path, tiny_folder: Path) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.heic").write_bytes(b"%PDF-1.7\n" + bytes([number]))
    (source / "empty.png").touch()
    options = ("--index", tmp_path / "index", "--model", tiny_folder)
    text = run("ingest", source, *options).stdout
    assert "\n  3 x a file in the format PDF, which is not read" in text
    told = json.loads(run("ingest", source, *options, "--json").stdout)
    assert sorted(told["failed_by_reason"].values()) == [1, 3]
