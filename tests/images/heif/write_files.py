"""Write the HEIF files beside this script; needs pillow-heif, since pi-heif only reads.

Run it as `PYTHONPATH=tests/images python tests/images/heif/write_files.py`, in an environment of
its own: pillow-heif holds an encoder under the GPL and is no dependency of this project.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pillow_heif
from icc_profiles import DISPLAY_P3, rgb_profile
from PIL import Image

HERE = Path(__file__).parent
STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{}"/></rdf:RDF></x:xmpmeta>'
)


def scene() -> Image.Image:
    """Return 64 x 48 pixels: red and green above, blue and white below."""
    image = Image.new("RGB", (64, 48), "white")
    for box, colour in (((0, 0), "red"), ((32, 0), (0, 160, 0)), ((0, 24), "blue")):
        image.paste(Image.new("RGB", (32, 24), colour), box)
    return image


def photograph() -> Image.Exif:
    """Return what a phone writes about a photograph."""
    exif = Image.Exif()
    exif[271], exif[272] = "Fairphone", "FP5"
    exif[306] = "2024:07:15 00:00:00"
    own = exif.get_ifd(0x8769)
    own[0x9003] = datetime(2024, 7, 14, 18, 30, 5).strftime("%Y:%m:%d %H:%M:%S")
    own[0x9011], own[0x9291] = "+01:00", "25"
    own[0xA434] = "FP5 main lens 5.6 mm f/1.88"
    place = exif.get_ifd(0x8825)
    place[1], place[2] = "N", (38.0, 42.0, 36.0)
    place[3], place[4] = "W", (9.0, 8.0, 24.0)
    return exif


def main() -> None:
    pillow_heif.register_heif_opener()
    for number in range(1, 9):
        image = scene()
        if number in STORED_AS:
            image = image.transpose(STORED_AS[number])
        exif = Image.Exif()
        exif[274] = number
        image.save(
            HERE / f"orientation-{number}.heic",
            exif=exif.tobytes(),
            xmp=XMP.format(number).encode(),
            quality=80,
        )
    Image.new("RGB", (64, 64), (200, 120, 60)).save(
        HERE / "display-p3.heic", icc_profile=rgb_profile(DISPLAY_P3, 2.2), quality=95
    )
    scene().save(HERE / "photograph.heic", exif=photograph().tobytes(), quality=80)
    half = scene().convert("RGBA")
    half.putalpha(128)
    half.save(HERE / "alpha.heic", quality=90)
    ramp = np.tile(np.linspace(0, 8191, 256).astype(np.uint16), (64, 1))  # dark: to 1/8 of white
    with (HERE / "grey-10-bits.heic").open("wb") as file:
        pillow_heif.encode("L;16", (256, 64), ramp.tobytes(), file, quality=95)
    first = Image.new("RGB", (64, 64), "red")
    first.save(
        HERE / "second-is-primary.heic",
        save_all=True,
        append_images=[Image.new("RGB", (64, 48), "blue")],
        primary_index=1,
    )
    Image.new("RGB", (6000, 4000), (90, 120, 60)).save(
        HERE / "6000x4000.heic", quality=30, chroma=444
    )


if __name__ == "__main__":
    main()
