"""The pixels of files are those that Chromium draws on a white canvas."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from icc_profiles import ADOBE_RGB, DISPLAY_P3, cmyk_profile, grey_profile, rgb_profile
from numpy.typing import NDArray
from PIL import Image
from pillow_files import pillow_files
from png_files import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, png, words

from edje_qdrant.images import FORMATS, open_upright

CHROMIUM = os.environ.get("EDJE_CHROMIUM") or shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
DRAW = """async ([data, type]) => {
    const image = new Image();
    image.src = `data:${type};base64,${data}`;
    try { await image.decode(); } catch { return null; }
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const pen = canvas.getContext("2d");
    pen.fillStyle = "white";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(image, 0, 0);
    return canvas.toDataURL("image/png").split(",")[1];
}"""
TYPES = {
    "JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp",
    "GIF": "image/gif", "BMP": "image/bmp", "AVIF": "image/avif", "ICO": "image/x-icon",
}  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path or at EDJE_CHROMIUM"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="playwright is not installed"
    ),
]

Draw = Callable[[bytes, str], "NDArray[np.int64] | None"]


@pytest.fixture(scope="module")
def draw() -> Iterator[Draw]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()

        def drawn(content: bytes, kind: str) -> NDArray[np.int64] | None:
            data = page.evaluate(DRAW, [base64.b64encode(content).decode(), TYPES[kind]])
            return data and np.asarray(
                Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), dtype=np.int64
            )

        yield drawn
        browser.close()


def ours(content: bytes) -> NDArray[np.int64]:
    return np.asarray(open_upright(io.BytesIO(content), "a")).astype(np.int64)


NUMBERS = np.random.default_rng(0)
STEPS = np.linspace(0, 255, 32).astype(np.uint8)
ACROSS = np.tile(STEPS, (20, 1))  # (20, 32)
DOWN = np.tile(STEPS[:20, None], (1, 32))
COLOURS = np.stack([ACROSS, DOWN, np.full_like(ACROSS, 90)], -1)  # (20, 32, 3)
MIXED = np.concatenate([COLOURS, DOWN[:, ::-1, None]], -1)
CUT_OUT = np.concatenate([COLOURS, np.where(DOWN > 90, 255, 0)[..., None].astype(np.uint8)], -1)
LOSSLESS = {"WEBP": {"lossless": True}, "PNG": {}, "GIF": {}, "BMP": {}, "ICO": {}}
FINE = {"quality": 100, "subsampling": "4:4:4"}


def saved(
    values: NDArray[np.uint8] | Image.Image,
    kind: str,
    *,
    profile: bytes | None = None,
    **more: object,
) -> bytes:
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    buffer = io.BytesIO()
    settings = {**LOSSLESS.get(kind, FINE), **more}
    image.save(buffer, kind, **settings, **({"icc_profile": profile} if profile else {}))
    return buffer.getvalue()


def inks(black: int) -> Image.Image:
    values = np.concatenate([COLOURS, np.full((20, 32, 1), black, np.uint8)], -1)
    return Image.frombytes("CMYK", (32, 20), values.tobytes())


def turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return saved(COLOURS, kind, exif=exif.tobytes())


def small_frame() -> bytes:
    """Return a GIF whose frame is smaller than its canvas."""
    content = bytearray(saved(COLOURS, "GIF"))
    content[6:10] = struct.pack("<2H", 40, 40)
    at = content.index(b",", 13 + 3 * 256)
    content[at + 1 : at + 5] = struct.pack("<2H", 5, 7)
    return bytes(content)


def made() -> Iterator[tuple[str, str, bytes, int]]:
    """Yield name, format, bytes and tolerance of files of all kinds.

    Chromium and Pillow round differently: by 1 where colours are mixed or converted. Of lossy
    formats the two have different decoders, which are allowed 2, and 3 with a conversion after it.
    """
    for kind in LOSSLESS:
        yield kind, kind, saved(COLOURS, kind), 0
    yield "JPEG", "JPEG", saved(COLOURS, "JPEG"), 2
    yield "AVIF", "AVIF", saved(COLOURS, "AVIF"), 2
    for kind in ("PNG", "WEBP", "ICO", "BMP"):
        yield f"{kind} alpha", kind, saved(MIXED, kind), 1
    # Chromium takes AVIF's opacity for one of limited range, so that only its ends agree.
    yield "AVIF alpha", "AVIF", saved(CUT_OUT, "AVIF"), 3
    yield "GIF alpha", "GIF", saved(CUT_OUT, "GIF"), 0
    for bits in (1, 2, 4, 8, 16):
        top = 2**bits - 1
        grey = NUMBERS.integers(0, top + 1, (9, 16))
        grey[0, :4] = top // 2
        grey[1, 0] = top  # so that deep files fill their range
        key = ((b"tRNS", words(top // 2)),)
        yield f"grey {bits}", "PNG", png(grey, colour=GREY, bits=bits), 1
        yield f"grey {bits} key", "PNG", png(grey, colour=GREY, bits=bits, chunks=key), 1
        if bits > 8:
            continue
        palette = (b"PLTE", NUMBERS.bytes(48))
        indices = np.minimum(grey, 15)
        for name, opacity in (("index", b"\xff\0"), ("opacities", b"\0\x64\xff\x20"[: top + 1])):
            content = png(indices, colour=PALETTE, bits=bits, chunks=(palette, (b"tRNS", opacity)))
            yield f"palette {bits} {name}", "PNG", content, 1
    for bits in (8, 16):
        top = 2**bits - 1
        values = NUMBERS.integers(0, top + 1, (9, 16, 4))
        values[0, :3] = [top // 3, 9, 8, top]
        values[0, 1, 2] = 9  # 16 bits: equal to the transparent colour in the upper byte
        key = ((b"tRNS", words(top // 3, 9, 8)),)
        yield f"colours {bits}", "PNG", png(values[..., :3], colour=RGB, bits=bits), 1
        yield f"key {bits}", "PNG", png(values[..., :3], colour=RGB, bits=bits, chunks=key), 1
        yield f"alpha {bits}", "PNG", png(values, colour=RGBA, bits=bits), 1
        yield f"grey alpha {bits}", "PNG", png(values[..., 2:], colour=GREY_ALPHA, bits=bits), 1
    p3, adobe, grey18 = rgb_profile(DISPLAY_P3, 2.2), rgb_profile(ADOBE_RGB, 2.2), grey_profile(1.8)
    for kind, tolerance in (("PNG", 1), ("WEBP", 1), ("JPEG", 3), ("AVIF", 3)):
        yield f"{kind} P3", kind, saved(COLOURS, kind, profile=p3), tolerance
        yield f"{kind} Adobe RGB", kind, saved(COLOURS, kind, profile=adobe), tolerance
    yield "P3 alpha", "PNG", saved(MIXED, "PNG", profile=p3), 1
    yield "P3 palette", "PNG", saved(Image.fromarray(COLOURS).quantize(60), "PNG", profile=p3), 1
    for kind in ("PNG", "JPEG"):
        yield f"{kind} grey", kind, saved(ACROSS, kind, profile=grey18, subsampling=0), 2
        yield f"{kind} grey P3", kind, saved(ACROSS, kind, profile=p3, subsampling=0), 2
        yield f"{kind} of CMYK", kind, saved(COLOURS, kind, profile=cmyk_profile()), 2
        yield f"{kind} of grey", kind, saved(COLOURS, kind, profile=grey18), 2
        yield f"{kind} torn profile", kind, saved(COLOURS, kind, profile=p3[:200]), 2
    yield "CMYK", "JPEG", saved(inks(90), "JPEG", subsampling=0), 2
    # With black ink Chromium differs: it takes it for opacity. And between the entries of the
    # profile's table the two interpolate differently.
    yield "CMYK profile", "JPEG", saved(inks(0), "JPEG", subsampling=0, profile=cmyk_profile()), 20
    for value in (100_000, 55_556):
        chunk = (b"gAMA", value.to_bytes(4, "big"))
        yield f"gamma {value}", "PNG", png(COLOURS, colour=RGB, chunks=(chunk,)), 1
    for kind in ("JPEG", "PNG", "AVIF"):
        for orientation in range(1, 9):
            yield f"{kind} turn {orientation}", kind, turned(kind, orientation), 2
    frames = [Image.new("RGB", (32, 20), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP", "GIF"):
        content = saved(COLOURS, kind, save_all=True, append_images=frames)
        yield f"{kind} animated", kind, content, 0
    content = saved(
        frames[0], "PNG", save_all=True, default_image=True,
        append_images=[Image.fromarray(COLOURS), frames[1]],
    )  # fmt: skip
    yield "PNG default image", "PNG", content, 0
    yield "GIF small frame", "GIF", small_frame(), 0
    sizes = [(16, 16), (48, 48), (32, 32)]
    square = Image.fromarray(MIXED[:, :20]).resize((48, 48))
    yield "ICO sizes", "ICO", saved(square, "ICO", sizes=sizes), 1


def test_made_files(draw: Draw) -> None:
    different = []
    for name, kind, content, tolerance in made():
        expected, found = draw(content, kind), ours(content)
        if expected is None or expected.shape != found.shape:
            different.append(name)
        elif (most := np.abs(found - expected).max()) > tolerance:
            different.append(f"{name}: {most}")
    assert not different


# Files of Pillow's tests that Chromium shows otherwise, and why that is meant.
OTHERWISE = {
    "apng/chunk_multi_actl.png": "two counts of frames: Chromium takes it for no animation",
    "apng/chunk_no_fctl.png": "a frame sequence with errors",
    "apng/chunk_no_fdat.png": "a frame sequence with errors",
    "apng/chunk_repeat_fctl.png": "a frame sequence with errors",
    "apng/sequence_fdat_fctl.png": "a frame sequence with errors",
    "apng/sequence_start.png": "a frame sequence with errors",
    "avif/xmp_tags_orientation.avif": "turned by its XMP data",
    "bmp/b/badrle.bmp": "pixels that the compression leaves out",
    "bmp/q/pal4rletrns.bmp": "pixels that the compression leaves out",
    "bmp/q/pal8rletrns.bmp": "pixels that the compression leaves out",
    "mmap_error.bmp": "pixels that the compression leaves out",
    "exif_imagemagick_orientation.png": "turned by the EXIF data in a text chunk",
    "hopper_unexpected.ico": "its header has another size than its image",
    "i_trns.png": "8 bits in 16",
    "icc_profile_big.jpg": "a profile with a large table, interpolated otherwise",
    "issue_2811.gif": "a code size that Chromium refuses in the middle",
    "xmp_tags_orientation.png": "turned by its XMP data",
    "xmp_tags_orientation_exiftool.png": "turned by its XMP data",
    **{f"hopper_orientation_{n}.webp": "Chromium does not turn WebP" for n in range(2, 9)},
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_files_of_pillows_tests(draw: Draw) -> None:
    """Of the files that both read, 3 in 255 between two decoders and two sets of arithmetic.

    Chromium interpolates the colours of AVIFs that have fewer of them than pixels with other
    weights (up to 7), and converts a gamma of 1/2.2 to sRGB (up to 9).
    """
    folder = pillow_files()
    different, compared = [], 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        try:
            with Image.open(path, formats=FORMATS) as image:
                kind, gamma = str(image.format), image.info.get("gamma")
                small = image.width * image.height <= 4_000_000
            if kind not in TYPES or not small or name in OTHERWISE:
                continue
            content = Path(path).read_bytes()
            found = ours(content)
        except Exception:  # many are damaged, and opening them raises errors of any type
            continue
        expected = draw(content, kind)
        if expected is None:
            continue
        compared += 1
        tolerance = 9 if gamma else 7 if kind == "AVIF" else 3
        if found.shape != expected.shape or np.abs(found - expected).max() > tolerance:
            different.append(name)
    assert not different
    assert compared > 500
