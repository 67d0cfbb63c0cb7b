from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, TiffImagePlugin

from edje_qdrant.images import DecoderPool, Exif
from edje_qdrant.images.exif import read_exif

ORIGINAL, DIGITIZED, OFFSET, OFFSET_DIGITIZED, LENS = 36867, 36868, 36881, 36882, 42036
LISBON: dict[int, Any] = {1: "N", 2: (38.0, 42.0, 36.0), 3: "W", 4: (9.0, 8.0, 24.0)}


def exif_of(
    main: dict[int, Any] | None = None,
    own: dict[int, Any] | None = None,
    gps: dict[int, Any] | None = None,
) -> Image.Exif:
    exif = Image.Exif()
    exif.update(main or {})
    exif.get_ifd(34665).update(own or {})
    exif.get_ifd(34853).update(gps or {})
    return exif


def saved(exif: Image.Exif | bytes, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    data = exif if isinstance(exif, bytes) else exif.tobytes()  # with the data below 34665
    Image.new("RGB", (16, 12), "red").save(buffer, kind, exif=data)
    return buffer.getvalue()


def read(exif: Image.Exif | bytes, kind: str = "JPEG") -> Exif:
    with Image.open(io.BytesIO(saved(exif, kind))) as image:
        if kind == "PNG":
            image.load()
        return read_exif(image)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_every_format_through_a_decoder_process(kind: str, orientation: int) -> None:
    exif = exif_of(
        {271: "Fairphone", 272: "FP5", 274: orientation},
        {ORIGINAL: "2024:07:14 18:30:05", OFFSET: "+01:00", LENS: "5.6 mm f/1.88"},
        LISBON,
    )
    content = saved(exif, kind)
    with DecoderPool(1) as pool:
        decoded = pool.decode(content, "a")
    assert decoded.exif == Exif(
        "2024-07-14T18:30:05+01:00", 38.71, -9.14, "Fairphone FP5", "5.6 mm f/1.88"
    )
    assert decoded.file_bytes == len(content)
    # As before: reading the data has turned nothing a second time.
    assert (decoded.width, decoded.height) == ((16, 12) if orientation == 1 else (12, 16))


def test_a_photograph_in_heic() -> None:
    pytest.importorskip("pi_heif")
    with DecoderPool(1) as pool:
        found = pool.decode(str(Path(__file__).parent / "heif" / "photograph.heic")).exif
    assert (found.taken_at, found.lat, found.lon) == ("2024-07-14T18:30:05+01:00", 38.71, -9.14)
    assert found.camera == "Fairphone FP5"


@pytest.mark.parametrize(
    ("own", "taken_at"),
    [
        ({ORIGINAL: "2024:07:14 18:30:05"}, "2024-07-14T18:30:05Z"),
        ({ORIGINAL: "2024:07:14 18:30:05\0", OFFSET: "-04:00\0"}, "2024-07-14T18:30:05-04:00"),
        ({ORIGINAL: "2024:07:14 18:30:05", OFFSET: "Z"}, "2024-07-14T18:30:05Z"),
        ({ORIGINAL: "2024:07:14 18:30:05", OFFSET: "   :  "}, "2024-07-14T18:30:05Z"),
        ({ORIGINAL: "2024:07:14 18:30:05", OFFSET: "+29:99"}, "2024-07-14T18:30:05Z"),
        ({ORIGINAL: "0000:00:00 00:00:00"}, None),
        ({ORIGINAL: "2024:02:30 18:30:05"}, None),
        ({ORIGINAL: "2017:08:21 15:08:70"}, None),
        ({ORIGINAL: "    :  :     :  :  "}, None),
        ({ORIGINAL: "yesterday"}, None),
        (
            {
                ORIGINAL: "0000:00:00 00:00:00",
                DIGITIZED: "2019:01:02 03:04:05",
                OFFSET_DIGITIZED: "+02:00",
            },
            "2019-01-02T03:04:05+02:00",
        ),
        ({}, None),
    ],
)
def test_dates(own: dict[int, Any], taken_at: str | None) -> None:
    assert read(exif_of(own=own)).taken_at == taken_at


def test_the_date_of_a_change_is_not_that_of_the_exposure() -> None:
    assert read(exif_of({306: "2024:07:14 18:30:05"})).taken_at is None


@pytest.mark.parametrize(
    ("gps", "place"),
    [
        (LISBON, (38.71, -9.14)),
        ({**LISBON, 1: "S", 3: "E"}, (-38.71, 9.14)),
        ({**LISBON, 2: (38.71, 0.0, 0.0)}, (38.71, -9.14)),
        ({**LISBON, 1: "Q"}, (None, None)),
        ({2: LISBON[2], 4: LISBON[4]}, (None, None)),
        ({1: "N", 2: LISBON[2]}, (None, None)),
        ({**LISBON, 2: (91.0, 0.0, 0.0)}, (None, None)),
        ({**LISBON, 2: (TiffImagePlugin.IFDRational(0, 0), 0.0, 0.0)}, (None, None)),
        ({1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)}, (None, None)),
    ],
)
def test_places(gps: dict[int, Any], place: tuple[float | None, float | None]) -> None:
    found = read(exif_of(gps=gps))
    assert (found.lat, found.lon) == place


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS R5", "Canon EOS R5"),
        ("NIKON CORPORATION", "NIKON D800\0\0", "NIKON D800"),
        ("Apple", "iPhone 14", "Apple iPhone 14"),
        ("Google ", None, "Google"),
        (None, "FP5", "FP5"),
        ("\0", "  ", None),
        ("a\nb", "\x07c", "a b c"),
        (None, "x" * 5000, "x" * 200),
    ],
)
def test_cameras(make: str | None, model: str | None, camera: str | None) -> None:
    main = {tag: text for tag, text in ((271, make), (272, model)) if text is not None}
    assert read(exif_of(main)).camera == camera


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_data_fail_no_image(kind: str) -> None:
    whole = exif_of({271: "A"}, {ORIGINAL: "2024:07:14 18:30:05"}, LISBON).tobytes()
    damaged = [
        whole[:-20],
        whole[:30],
        whole[:14] + bytes(range(256)),
        b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 300,
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x08\0\0\0\0",  # in a circle
    ]
    with DecoderPool(1) as pool:
        for exif in damaged:
            decoded = pool.decode(saved(exif, kind), "a")
            assert decoded.array.shape == (12, 16, 3)
            assert decoded.exif.lat is None or decoded.exif.lat == 38.71


def test_what_a_process_sends_is_checked() -> None:
    known = Exif("2024-07-14T18:30:05+01:00", 38.71, -9.14, "A", "B")
    assert Exif.from_json(json.loads(json.dumps(known.to_json()))) == known
    for sent in (None, [], "x", {"taken_at": 3, "lat": "1", "lon": 1, "camera": {"a": 1}},
                 {"taken_at": "soon", "lat": 1e9, "lon": True, "lens": ""},
                 {"lat": 3}):  # fmt: skip
        assert Exif.from_json(sent) == Exif()
