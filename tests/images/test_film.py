"""Frames of films: which there are, and that each is the one that players show, upright."""

from __future__ import annotations

import io
import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from film_files import grey, number_of, write_film
from PIL import Image

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import MAX_PIXELS
from edje_qdrant.images.film import Film
from edje_qdrant.images.parts import Survey

av = pytest.importorskip("av")


def surveyed(path: Path) -> Survey:
    with path.open("rb") as file, Film(file, str(path), path.stat().st_size) as film:
        return film.survey()


def frames(path: Path, *times: int) -> list[Image.Image]:
    with path.open("rb") as file, Film(file, str(path), path.stat().st_size) as film:
        return [film.frame(at, MAX_PIXELS) for at in times]


def numbers(path: Path, *times: int) -> list[int]:
    return [round(number_of(image)) for image in frames(path, *times)]


def refusal(path: Path, at: int = 0) -> str:
    with pytest.raises(ImageReadError) as caught:
        frames(path, at)
    return caught.value.reason


CONTAINERS = [
    ("mp4", "libx264", "yuv420p"),
    ("mkv", "libx265", "yuv420p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("mp4", "libsvtav1", "yuv420p"),
    ("avi", "mpeg4", "yuv420p"),
    ("mpg", "mpeg2video", "yuv420p"),
    ("ts", "libx264", "yuv420p"),
    ("mov", "prores_ks", "yuv422p10le"),
    ("wmv", "wmv2", "yuv420p"),
    ("flv", "flv", "yuv420p"),
    ("3gp", "h263", "yuv420p"),
]


@pytest.mark.parametrize(("suffix", "codec", "pixels"), CONTAINERS)
def test_the_frame_of_a_time_is_found_in_any_order(
    tmp_path: Path, suffix: str, codec: str, pixels: str
) -> None:
    size = (176, 144) if codec == "h263" else (64, 48)
    options = {"preset": "12"} if codec == "libsvtav1" else {}
    path = write_film(
        tmp_path / f"a.{suffix}", [grey(n, size) for n in range(100)], codec=codec, pixels=pixels,
        options={"log-level": "none", "x265-params": "log-level=none", **options}
        if codec in ("libx265", "libsvtav1") else None,
    )  # fmt: skip
    assert os.sched_getscheduler(0) == os.SCHED_OTHER  # or proofs starve that this process starts
    assert surveyed(path).last == pytest.approx(3960, abs=40)
    times = [0, 1000, 1040, 3000, 3960, 500, 2500, 20]
    found = [number_of(image) for image in frames(path, *times)]
    assert found == pytest.approx(in_order(path, times), abs=0.45)
    assert found == pytest.approx([at // 40 % 50 for at in times], abs=1.5)  # as codecs are lossy
    apart = [number_of(image) for at in times for image in frames(path, at)]
    assert apart == found  # whatever was decoded before


def in_order(path: Path, times: list[int]) -> list[float]:
    """Return the numbers of the frames of some times, from decoding the whole film in order."""
    with av.open(str(path)) as container:
        decoded = [
            (1000 * (frame.time - container.start_time / 1e6), number_of(frame.to_ndarray(
                format="rgb24", interpolation="BICUBIC", src_colorspace="ITU601")))
            for frame in container.decode(video=0)
        ]  # fmt: skip
    return [[number for begins, number in decoded if begins <= at + 0.5][-1] for at in times]


def test_times_of_a_film_with_frames_of_any_length(tmp_path: Path) -> None:
    times = [0.0, 0.04, 1.5, 4.0, 4.1]
    path = write_film(tmp_path / "a.mp4", 5, times=times)
    assert surveyed(path) == Survey(last=4100)
    assert [*range(0, surveyed(path).last + 1, 2000)] == [0, 2000, 4000]
    assert numbers(path, 0, 1000, 1499, 1500, 3999, 4000, 4100) == [0, 1, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4"])
def test_time_begins_with_the_film(tmp_path: Path, suffix: str) -> None:
    path = write_film(tmp_path / f"a.{suffix}", 50, times=[1000 + n / 25 for n in range(50)])
    # An MP4's first frame is shown at 0, whatever its time.
    assert surveyed(path).last == 1960
    assert numbers(path, 0, 1000, 1960) == [0, 25, 49]


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_frames_around_an_open_group(tmp_path: Path, codec: str) -> None:
    options = {"x264-params": "open-gop=1:bframes=3:scenecut=0:keyint=12:min-keyint=12"}
    path = write_film(
        tmp_path / "a.ts", 60, codec=codec, every_key=12,
        options=options if codec == "libx264" else {"bf": "2", "mpv_flags": "strict_gop"},
    )  # fmt: skip
    times = [number * 40 for number in range(60)]
    # Each is sought in a film that was just opened.
    found = [number_of(frames(path, at)[0]) for at in times]
    assert found == pytest.approx(in_order(path, times), abs=0.45)


def test_a_film_without_a_duration(tmp_path: Path) -> None:
    import av as library

    whole = io.BytesIO()
    whole.seekable = lambda: False  # type: ignore[method-assign]
    with library.open(whole, "w", format="matroska", options={"live": "1"}) as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(50):
            frame = library.VideoFrame.from_ndarray(grey(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path = tmp_path / "a.mkv"
    path.write_bytes(whole.getvalue())
    with path.open("rb") as file, Film(file, "a", 1) as film:
        assert film.estimate().last == 0
    assert surveyed(path).last == 1960
    assert numbers(path, 0, 1960) == [0, 49]


MATRICES = {
    "as it is": (1, 0, 0, 1, None),
    "a quarter clockwise": (0, 1, -1, 0, Image.Transpose.ROTATE_270),
    "upside down": (-1, 0, 0, -1, Image.Transpose.ROTATE_180),
    "a quarter anticlockwise": (0, -1, 1, 0, Image.Transpose.ROTATE_90),
    "mirrored": (-1, 0, 0, 1, Image.Transpose.FLIP_LEFT_RIGHT),
    "mirrored upside down": (1, 0, 0, -1, Image.Transpose.FLIP_TOP_BOTTOM),
    "mirrored diagonally": (0, 1, 1, 0, Image.Transpose.TRANSPOSE),
    "mirrored at the other diagonal": (0, -1, -1, 0, Image.Transpose.TRANSVERSE),
}


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_upright(tmp_path: Path, name: str) -> None:
    *signs, turn = MATRICES[name]
    path = write_film(tmp_path / "a.mov", 2, codec="mjpeg", pixels="yuvj420p")
    content = path.read_bytes()
    # The matrix of the track header: a, b, u, c, d, v, x, y, w.
    at = content.index(b"tkhd") + 4 + 40
    one, w = 1 << 16, 1 << 30
    a, b, c, d = (sign * one for sign in signs)
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, w)
    path.write_bytes(content[:at] + matrix + content[at + 36 :])
    expected = Image.fromarray(grey(0))
    expected = expected if turn is None else expected.transpose(turn)
    (image,) = frames(path, 0)
    assert image.size == expected.size
    difference = np.asarray(image, np.int16) - np.asarray(expected, np.int16)
    assert np.abs(difference).mean() < 8


@pytest.mark.parametrize(
    ("ratio", "size"), [((4, 3), (96, 54)), ((1, 2), (72, 108)), ((1, 1), (72, 54))]
)
def test_pixels_become_square(
    tmp_path: Path, ratio: tuple[int, int], size: tuple[int, int]
) -> None:
    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(*ratio)

    path = write_film(tmp_path / "a.mkv", [grey(9, (72, 54))] * 2, setup=wide)
    (image,) = frames(path, 0)
    assert image.size == size
    assert np.asarray(image)[2, 2, 0] > 200  # the corner stays in its place
    assert number_of(image) == pytest.approx(9, abs=1)


def test_one_moment_of_an_interlaced_frame_is_shown(tmp_path: Path) -> None:
    woven = np.zeros((64, 64, 3), np.uint8)
    woven[::2] = 200  # one moment is light, the other dark
    path = write_film(
        tmp_path / "a.mpg", [woven] * 3, codec="mpeg2video",
        options={"flags": "+ildct+ilme", "top": "1", "b": "2000000"},
        setup=lambda stream: None,
        frame=_interlaced,
    )  # fmt: skip
    (image,) = frames(path, 40)
    levels = np.asarray(image)[16:-16, 16:-16]
    assert levels.std() < 20


def _interlaced(image: np.ndarray) -> Any:
    graph = av.filter.Graph()
    made = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv422p")
    source = graph.add_buffer(width=64, height=64, format=made.format, time_base=Fraction(1, 25))
    mark = graph.add("setfield", "tff")
    sink = graph.add("buffersink")
    source.link_to(mark)
    mark.link_to(sink)
    graph.configure()
    graph.push(made)
    marked = graph.pull()
    assert marked.interlaced_frame
    return marked.reformat(format="yuv420p")


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    colours = np.zeros((48, 64, 4), np.uint8)
    colours[:, 32:] = (255, 0, 0, 255)
    path = write_film(
        tmp_path / "a.mov", [colours] * 2, codec="qtrle", pixels="argb",
        frame=lambda image: av.VideoFrame.from_ndarray(image, format="rgba"),
    )  # fmt: skip
    (image,) = frames(path, 0)
    assert image.getpixel((8, 8)) == (255, 255, 255)
    assert image.getpixel((60, 8)) == (255, 0, 0)


def test_unmarked_colours_are_those_of_their_size(tmp_path: Path) -> None:
    """Players take the matrix of BT.709 for large frames, that of BT.601 for small ones."""
    for height, name in ((576, "ITU601"), (720, "ITU709")):
        colours = np.zeros((height, 64, 3), np.uint8)
        colours[:] = (30, 200, 60)
        path = write_film(
            tmp_path / f"{height}.mkv", [colours] * 2, codec="ffv1",
            frame=lambda image, name=name: _unmarked(image, name),
        )  # fmt: skip
        (image,) = frames(path, 0)
        assert image.getpixel((32, 32)) == pytest.approx((30, 200, 60), abs=6)


def _unmarked(image: np.ndarray, matrix: str) -> Any:
    made = av.VideoFrame.from_ndarray(image, format="rgb24")
    made = made.reformat(format="yuv420p", dst_colorspace=matrix)
    made.colorspace = 2
    return made


def test_a_file_of_sound_with_a_cover_is_no_film(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("aac", rate=44100)
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 44100
        container.mux(cover.encode(av.VideoFrame.from_ndarray(grey(3), format="rgb24")))
        container.mux(cover.encode(None))
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    assert refusal(path) == "a file with a cover picture only, such as music"


def test_a_film_with_a_cover_shows_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 640, 480, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        film: Any = container.add_stream("libx264", rate=25, options={"qp": "0"})
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        still = av.VideoFrame.from_ndarray(grey(49, (640, 480)), format="rgb24")
        container.mux(cover.encode(still))
        container.mux(cover.encode(None))
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(grey(number), format="rgb24")
            container.mux(film.encode(frame))
        container.mux(film.encode(None))
    assert numbers(path, 0, 1000) == [0, 25]


def test_a_file_that_ends_too_early_shows_what_it_has(tmp_path: Path) -> None:
    path = write_film(
        tmp_path / "a.mp4", [_noise(number) for number in range(250)],
        container_options={"movflags": "faststart"}, options={"preset": "ultrafast"},
    )  # fmt: skip
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 5])
    survey = surveyed(path)
    assert survey.whole == 10_000
    assert 2000 < survey.last < 5000
    shown = frames(path, *range(0, survey.last + 1, 1000))
    assert len(shown) == survey.last // 1000 + 1


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_damage_in_the_middle_costs_the_frames_there(tmp_path: Path, suffix: str) -> None:
    path = write_film(
        tmp_path / f"a.{suffix}", [_noise(number) for number in range(250)],
        options={"preset": "ultrafast"}, every_key=25,
    )  # fmt: skip
    content = bytearray(path.read_bytes())
    fifth = len(content) // 5
    content[2 * fifth : 3 * fifth] = bytes(fifth)
    path.write_bytes(content)
    with path.open("rb") as file, Film(file, str(path), len(content)) as film:
        reasons = {at: reason(film, at) for at in range(0, film.survey().last + 1, 1000)}
    damaged = [at for at in reasons if reasons[at] is not None]
    assert {reasons[at] for at in damaged} <= {"the film is damaged here"}
    assert set(damaged) <= set(range(4000, 7000, 1000))
    # The index of an MP4 lies elsewhere, and names the frames that are gone.
    assert suffix == "mkv" or 5000 in damaged


def reason(film: Film, at: int) -> str | None:
    try:
        film.frame(at, MAX_PIXELS)
    except ImageReadError as error:
        return error.reason
    return None


def _noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (48, 64, 3)).astype(np.uint8)


class LateStreams:
    """A container that found another stream on the way, of which PyAV has no object."""

    def __init__(self, container: Any) -> None:
        self._container = container

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, *streams: Any) -> Any:
        yield from self._container.demux(*streams)
        raise IndexError("list index out of range")


def test_a_stream_that_begins_late_is_no_error(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.ts", 50)
    with path.open("rb") as file, Film(file, str(path), 1) as film:
        film._container = LateStreams(film._container)
        assert film.survey().last == 1960
    with path.open("rb") as file, Film(file, str(path), 1) as film:
        film._container = LateStreams(film._container)
        assert round(number_of(film.frame(1960, MAX_PIXELS))) == 49


@pytest.mark.parametrize("content", [b"no film", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
                                     b"ffconcat version 1.0\nfile '/etc/passwd'\n"])  # fmt: skip
def test_files_that_are_no_films_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert refusal(path).startswith("not a film, or a damaged one, or of a kind that is not read")


def test_codecs_that_are_not_listed_are_refused(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.avi", 2, codec="zmbv", pixels="bgr0", options={})
    assert refusal(path) == "a film in the codec zmbv, which is not read"


def test_frames_beyond_the_end_are_refused(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", 50)
    assert refusal(path, 60_000) == "the film ends before this time"


def test_large_frames_are_refused(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", 2)
    with path.open("rb") as file, Film(file, "a", 1) as film, pytest.raises(
        ImageReadError, match="64 x 48 pixels; no more than 3000 are allowed"
    ):  # fmt: skip
        film.frame(0, 3000)


def test_what_phones_write_into_films(tmp_path: Path) -> None:
    path = write_film(
        tmp_path / "a.mov", 2, container_options={"movflags": "use_metadata_tags"},
        metadata={
            "com.apple.quicktime.creationdate": "2024-07-14T18:30:05+0100",
            "com.apple.quicktime.location.ISO6709": "+38.7101-009.1402+012.345/",
            "com.apple.quicktime.make": "Apple", "com.apple.quicktime.model": "iPhone 15",
        },
    )  # fmt: skip
    with path.open("rb") as file, Film(file, "a", 1) as film:
        assert film.exif().to_json() == {
            "taken_at": "2024-07-14T18:30:05+01:00", "lat": 38.7101, "lon": -9.1402,
            "camera": "Apple iPhone 15",
        }  # fmt: skip


def test_what_other_cameras_write_into_films(tmp_path: Path) -> None:
    tags = {"creation_time": "2024-07-14T17:30:05.000000Z", "location": "+38.7101-009.1402/"}
    path = write_film(tmp_path / "a.mp4", 2, metadata=tags)
    with path.open("rb") as file, Film(file, "a", 1) as film:
        assert film.exif().to_json() == {
            "taken_at": "2024-07-14T17:30:05Z", "lat": 38.7101, "lon": -9.1402,
        }  # fmt: skip
    tags = {"creation_time": "1904-01-01T00:00:00.000000Z", "location": "nowhere"}
    path = write_film(tmp_path / "b.mkv", 2, metadata=tags)
    with path.open("rb") as file, Film(file, "a", 1) as film:
        assert film.exif().to_json() == {}
