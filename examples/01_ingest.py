"""Ingest a folder of images into a collection; a second run adds only new images.

    python examples/01_ingest.py [IMAGES] [INDEX]

Without IMAGES, sixty images are drawn.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edje_qdrant import EDJEModel, ImageCollection, ingest_images


def main(pictures: str | None = None, index: str = "example-index") -> None:
    """Ingest, and say what happened."""
    if pictures is None:
        from edje_qdrant.demo.annotated import write_scenes

        pictures = str(write_scenes("example-scenes", count=60).parent / "pictures")
    model = EDJEModel.from_pretrained("demo")  # or a folder, or a hub id
    contract = model.contract()
    with ImageCollection.open_or_create(index, "images", contract, codec="int8") as collection:
        report = ingest_images(pictures, collection, model)
        print(f"{report.added} added, {report.skipped} there already, in {Path(index).absolute()}")
        for failure in report.failed:
            print(f"  {failure.path}: {failure.reason}")
        print(f"{collection.bytes_per_image():,} bytes of tokens an image")


if __name__ == "__main__":
    main(*sys.argv[1:])
