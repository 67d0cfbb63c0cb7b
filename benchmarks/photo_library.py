"""Ingest a folder of real files of every kind with one command, and search it by date and place.

    python benchmarks/photo_library.py --folder /tmp/library --out docs/results/photo-library.json

The files are made by others: Debian's wallpapers and stamps (photographs, a good part), and the
test files of exiv2 and ExifTool (from phones and cameras; many damaged on purpose). `apt-get
download` and `apt-get source` fetch them: a machine with Debian's archive is needed, and some 400
MB. A part of them is converted, as phones and cameras would have stored it: HEIC, AVIF, TIFF, a DNG
with a preview, EXIF data with dates and places, a film, a PDF; and the folder has what photo
libraries have besides: hidden files, folders of thumbnails, notes, copies, damaged files.

Needs the extras heif, raw, video and pdf, and pillow-heif, which writes HEIC.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import pillow_heif
from demo_world import conditions
from PIL import Image

BINARY_PACKAGES = ("mate-backgrounds", "gnome-backgrounds", "tuxpaint-stamps-default",
                   "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04")  # fmt: skip
SOURCE_PACKAGES = ("exiv2", "libimage-exiftool-perl")
_EXIF_DATE, _EXIF_OFFSET, _MAKER, _CAMERA = 0x9003, 0x9011, 271, 272
_EXIF, _GPS = 0x8769, 0x8825
_BYTES_OF_TOKENS = 4096  # of the bundled model, a picture
LISBON, ALPS = (38.7223, -9.1393), (46.5586, 7.9784)


def main() -> None:
    """Make the folder, ingest it, search it, and print what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for packages and files; kept")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    library, index = options.folder / "library", options.folder / "index"
    if not library.exists():
        make_library(unpacked_packages(options.folder / "packages"), library)
    kinds = Counter(p.suffix.lower() for p in library.rglob("*") if p.is_file())
    print(f"{sum(kinds.values())} files:", dict(kinds.most_common()))
    shutil.rmtree(index, ignore_errors=True)
    command = ["ingest", str(library), "--index", str(index), "--gps", "--frames-every", "2s",
               "--pdf-pages"]  # fmt: skip
    killed = killed_ingest(command)
    started = time.perf_counter()
    report = counts(edje([*command, "--json"]))
    seconds = round(time.perf_counter() - started, 1)
    again = counts(edje([*command, "--json"]))
    found = {name: search(index, *where) for name, where in SEARCHES.items()}
    result = {
        "files": sum(kinds.values()), "kinds": dict(kinds), "stored_when_killed": killed,
        "seconds": seconds, "report": report, "again": again, "found": found, **conditions(),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


SEARCHES = {
    "in July 2023": ("--where", "taken_at>=2023-07-01", "--where", "taken_at<2023-08-01"),
    "within 10 km of Lisbon": ("--where", f"place~{LISBON[0]},{LISBON[1]},10000"),
    "in the Alps, in 2022": ("--where", f"place~{ALPS[0]},{ALPS[1]},50000",
                             "--where", "taken_at<2023-01-01"),
    "by an iPhone XR": ("--where", "camera=Apple iPhone XR"),
}  # fmt: skip


def edje(arguments: Sequence[str]) -> str:
    """Run the command as a user does, and return what it prints."""
    command = [sys.executable, "-m", "edje_qdrant", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def counts(report: str) -> dict[str, Any]:
    """Return a report without its paths."""
    return {name: value for name, value in json.loads(report).items()
            if name not in ("failed", "location", "name", "model")}  # fmt: skip


def killed_ingest(command: Sequence[str]) -> int:
    """Kill an ingest when some 200 images are written; return how many are stored then."""
    index = Path(command[command.index("--index") + 1])
    full = [sys.executable, "-m", "edje_qdrant", *command, "--batch-size", "8"]
    process = subprocess.Popen(full, stderr=subprocess.DEVNULL)
    while process.poll() is None and tokens_bytes(index) < 200 * _BYTES_OF_TOKENS:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return int(json.loads(edje(["info", "--index", str(index), "--json"]))["points"])


def tokens_bytes(index: Path) -> int:
    """Return the size of the side files of an index."""
    files = index.glob("*/tokens/*") if index.exists() else []
    return sum(path.stat().st_size for path in files)


def search(index: Path, *where: str) -> int:
    """Return how many of 1,000 images a filter finds."""
    command = ["search", "a photograph", "--index", str(index), "--json", "--top-k", "1000",
               "--num-candidates", "1000"]  # fmt: skip
    return len(json.loads(edje([*command, *where]))["hits"])


# ------------------------------------------------------------------------------- the files


def unpacked_packages(folder: Path) -> Path:
    """Download and unpack the packages; return their folder."""
    done = folder / "done"
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", *BINARY_PACKAGES], cwd=folder, check=True)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder / "files"], check=True)
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    suite = subprocess.run(
        [". /etc/os-release; echo $VERSION_CODENAME"], shell=True, check=True,
        capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    (folder / "sources.list").write_text(f"deb-src http://deb.debian.org/debian {suite} main\n")
    places = (
        f"Dir::Etc::sourcelist={folder.resolve()}/sources.list",
        "Dir::Etc::sourceparts=/dev/null",
        f"Dir::State::lists={lists.resolve()}",
    )
    apt = ["apt-get", *(word for place in places for word in ("-o", place))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "source", "--download-only", *SOURCE_PACKAGES], cwd=folder, check=True)
    for archive in folder.glob("*.orig.tar.*"):
        subprocess.run(["tar", "-xf", archive.name], cwd=folder, check=True)
    done.touch()
    return folder


def make_library(packages: Path, library: Path) -> None:
    """Write a photo library of a few hundred files of all kinds."""
    choose = random.Random(0)
    photographs = sorted(
        path for path in (packages / "files/usr/share/backgrounds").rglob("*")
        if path.suffix in (".jpg", ".png", ".webp") and path.is_file()
    )  # fmt: skip
    for number, path in enumerate(photographs):
        convert(path, library, number)
    stamps = packages / "files/usr/share/tuxpaint/stamps"
    for name in ("animals", "plants", "food", "vehicles", "space", "town"):
        below = sorted((stamps / name).rglob("*.png"))
        for path in choose.sample(below, min(60, len(below))):
            copy(path, library / "Stamps" / path.relative_to(stamps))
    for sample in samples_of_cameras(packages):
        copy(sample, library / "Cameras" / sample.parent.parent.name / sample.name)
    make_film(photographs[:12], library / "Films" / "holiday.mp4")
    make_document(photographs[12:17], library / "Papers" / "album.pdf")
    make_leftovers(photographs, library)


def convert(path: Path, library: Path, number: int) -> None:
    """Store a photograph as a phone, a camera or a program would have stored it."""
    image = Image.open(path).convert("RGB")
    image.thumbnail((1600, 1600))
    day = 1 + number % 28
    kind = number % 4
    if kind == 0:  # a phone, on holiday in Lisbon
        target = library / f"Phone/2023-07/IMG_{number:04}.heic"
        exif = exif_of(f"2023:07:{day:02} 18:30:00", "+01:00", ("Apple", "iPhone 14"), LISBON)
        pillow_heif.register_heif_opener()
        save(image, target, exif=exif, quality=70)
    elif kind == 1:  # a camera, in the Alps
        target = library / f"Camera/2022 Alps/DSC_{number:04}.JPG"
        exif = exif_of(f"2022:02:{day:02} 10:00:00", None, ("NIKON", "D750"), ALPS)
        save(image, target, "JPEG", exif=exif, quality=88)
    elif kind == 2:
        save(image, library / f"Web/picture-{number}.avif", quality=60)
    else:
        save(image, library / f"Scans/scan {number}.tif", compression="tiff_lzw")


def exif_of(
    taken: str, offset: str | None, camera: tuple[str, str], place: tuple[float, float]
) -> Image.Exif:
    """Return EXIF data with a date, a camera and a place."""
    exif = Image.Exif()
    exif[_MAKER], exif[_CAMERA] = camera
    details: dict[int, Any] = {_EXIF_DATE: taken}
    if offset is not None:
        details[_EXIF_OFFSET] = offset
    exif.get_ifd(_EXIF).update(details)
    lat, lon = place
    exif.get_ifd(_GPS).update({
        1: "N" if lat >= 0 else "S", 2: degrees(abs(lat)),
        3: "E" if lon >= 0 else "W", 4: degrees(abs(lon)),
    })  # fmt: skip
    return exif


def degrees(angle: float) -> tuple[float, float, float]:
    """Return degrees, minutes and seconds."""
    minutes = angle * 60 % 60
    return float(int(angle)), float(int(minutes)), round(minutes * 60 % 60, 2)


def save(image: Image.Image, path: Path, kind: str | None = None, **how: Any) -> None:
    """Save an image, in a folder that may not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, kind, **how)


def copy(source: Path, target: Path) -> None:
    """Copy a file with its time of change, into a folder that may not be there yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def samples_of_cameras(packages: Path) -> Iterator[Path]:
    """Return files from cameras, phones and fuzzers."""
    kinds = {".jpg", ".png", ".tif", ".tiff", ".webp", ".jp2", ".heic", ".hif", ".avif", ".raf",
             ".rw2", ".cr2", ".cr3", ".nef", ".dng", ".crw", ".x3f", ".psd", ".jxl", ".mov",
             ".m2ts", ".avi", ".mp4", ".pdf", ".xmp", ".svg"}  # fmt: skip
    for folder in ("exiv2-*/test/data", "Image-ExifTool-*/t/images"):
        for found in sorted(packages.glob(folder)):
            yield from (p for p in sorted(found.iterdir()) if p.suffix.lower() in kinds)


def make_film(photographs: Sequence[Path], path: Path, rate: int = 10) -> None:
    """Show each photograph for two seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for photograph in photographs:
            frame = av.VideoFrame.from_image(
                Image.open(photograph).convert("RGB").resize((640, 360))
            )
            for _ in range(2 * rate):
                frame.pts = None
                film.mux(stream.encode(frame))
        film.mux(stream.encode(None))


def make_document(photographs: Sequence[Path], path: Path) -> None:
    """Put each photograph on a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.open(each).convert("RGB").resize((1240, 877)) for each in photographs]
    pages[0].save(path, save_all=True, append_images=pages[1:])


def make_leftovers(photographs: Sequence[Path], library: Path) -> None:
    """Add what photo libraries have besides photographs, and copies of some."""
    small = io.BytesIO()
    Image.open(photographs[0]).convert("RGB").resize((160, 100)).save(small, "JPEG")
    for name in (
        "Phone/2023-07/@eaDir/IMG_0000.heic/SYNOPHOTO_THUMB_S.jpg",
        ".thumbnails/1.jpg",
        "__MACOSX/._scan.jpg",
        "Camera/2022 Alps/._DSC_0001.JPG",
        ".hidden.jpg",
    ):
        target = library / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(small.getvalue())
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "Web/page.html"):
        (library / name).write_bytes(b"not an image\n")
    (library / "Scans/broken.png").write_bytes(b"not an image\n")
    (library / "Scans/cut off.jpg").write_bytes(small.getvalue()[:900])
    copies = sorted((library / "Camera/2022 Alps").glob("DSC*"))[:5]
    for path in copies:
        copy(path, library / "Backup" / path.name)
    os.utime(library / "Scans/broken.png", (0, 0))


if __name__ == "__main__":
    main()
