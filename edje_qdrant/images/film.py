"""Frames of films: which there are, and the one that a player shows at a time.

Decoder processes call this; see `decoder_worker`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from edje_qdrant.errors import ImageReadError, MissingExtraError
from edje_qdrant.images.exif import Exif
from edje_qdrant.images.hdr import Curve, Primaries, deep_to_srgb
from edje_qdrant.images.parts import Survey
from edje_qdrant.images.rgb import to_rgb

__all__ = ["FILM", "Film", "load_av"]

#: The name of these files' format, whatever the container.
FILM = "VIDEO"

# FFmpeg's names of what is read. It knows hundreds more: lists of other files and addresses,
# containers of games, codecs that few have tested.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,dv,mxf,ivf"
)
_CODECS = frozenset({
    "av1", "cfhd", "cinepak", "dnxhd", "dvvideo", "ffv1", "ffvhuff", "flv", "flv1", "h263", "h264",
    "hevc", "huffyuv", "jpeg2000", "libaom-av1", "libdav1d", "mjpeg", "mpeg1video", "mpeg2video",
    "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "msmpeg4v3", "png", "prores", "qtrle",
    "rawvideo", "svq1", "svq3", "theora", "utvideo", "v210", "vc1", "vp6", "vp6f", "vp8", "vp9",
    "vvc", "wmv1", "wmv2", "wmv3",
})  # fmt: skip

# FFmpeg's numbers (ISO/IEC 23091-2): matrices, transfer functions, primaries, ranges.
_UNKNOWN_MATRIX = 2
_ITU_709, _ITU_601 = "ITU709", "ITU601"
_CURVES: dict[int, Curve] = {16: "pq", 18: "hlg"}
_WIDE: dict[int, Primaries] = {9: "bt2020", 11: "p3", 12: "p3"}
_HD_LINES = 720

# Frames that a decoder holds, at most, and the bytes a pixel of the copies that conversions make.
_HELD, _COPIES = 20, 24
# Of codecs in which each frame is compressed alone.
_HELD_ALONE = 5
_ALONE = frozenset({
    "cfhd", "dnxhd", "dvvideo", "ffvhuff", "huffyuv", "jpeg2000", "mjpeg", "png", "prores",
    "rawvideo", "utvideo", "v210",
})  # fmt: skip
_FIXED = 32 << 20
# Bytes of an index of frames and samples, as part of the file.
_INDEX_SHARE, _MOST_INDEX = 20, 512 << 20

# A frame that should be shown is damaged if the one before it is this much older.
_STALE = Fraction(1, 2)
# The first frame of a recording that began between two key frames may come so much later.
_LATE_START = Fraction(2)
# Seconds that are decoded rather than skipped where no index tells of a key frame between.
_NEAR = 10
# Seconds by which a place is looked for earlier, if what was found lies too late.
_FURTHER_BACK = (1, 5, 20, 60)
# Packets one after another that cannot be read, after which a film counts as ended.
_MOST_ERRORS = 100
# Times of packets that are remembered.
_MANY = 10_000
# A film whose data end so much before the end that its header gives is incomplete.
_SHORT, _SHORT_SHARE = Fraction(1), Fraction(1, 50)
_MOST_PIXEL_RATIO = 16

_DAMAGED = "the film is damaged here"
_NO_FRAMES = "a film without frames that can be read"

_DISPLAY_MATRIX = "DISPLAYMATRIX"
# Signs of the display matrix's first four numbers -> the operation that makes a frame upright.
_UPRIGHT = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
_ON_SIDE = frozenset({
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
})  # fmt: skip

# Metadata of phones and cameras, the best first.
_MOMENTS = ("com.apple.quicktime.creationdate", "creation_time")
_PLACES = ("com.apple.quicktime.location.ISO6709", "location", "location-eng")
_MAKERS = ("com.apple.quicktime.make", "com.android.manufacturer", "make")
_MODELS = ("com.apple.quicktime.model", "com.android.model", "model")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:?\d\d)?")
_NO_CLOCK = ("1904-01-01", "1970-01-01")
_PLACE = re.compile(r"([+-]\d{1,2}(?:\.\d+)?)([+-]\d{1,3}(?:\.\d+)?)(?:[+-].*)?/?")


def load_av(name: str) -> Any:
    """Import PyAV.

    Raises:
        ImageReadError: The extra `video` is not installed.
    """
    try:
        import av
        import av.logging
    except ImportError as error:
        reason = f"a film, but {MissingExtraError('av', 'video')}"
        raise ImageReadError(name, reason) from error
    av.logging.set_level(None)
    return av


class Film:
    """A film that is open; a context manager that closes it.

    Times are those of players: from the film's start, in milliseconds. At a time, the last frame
    that began until then is shown.

    Args:
        file: Open for reading bytes, and seekable.
        name: Names the film in errors.
        size: Bytes of the file.

    Attributes:
        width: Of a frame as it is stored, in pixels.
        height: Of a frame as it is stored, in pixels.

    Raises:
        ImageReadError: The file is no film, or of a kind that is not read, or has no pictures.
    """

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self._av, self._file, self._name, self._size = load_av(name), file, name, size
        if not size:
            raise ImageReadError(name, "the file is empty")
        self._open()
        self.width, self.height = self._codec.width, self._codec.height

    def _open(self) -> None:
        self._file.seek(0)
        try:
            self._container = self._av.open(
                self._file, mode="r", metadata_errors="replace",
                options={
                    "format_whitelist": _CONTAINERS, "codec_whitelist": ",".join(sorted(_CODECS)),
                    "protocol_whitelist": "",
                },
            )  # fmt: skip
        except self._av.error.FFmpegError as error:
            reason = "not a film, or a damaged one, or of a kind that is not read"
            reason = f"{reason} ({error.strerror})"
            raise ImageReadError(self._name, reason) from error
        try:
            self._stream = self._pictures()
        except BaseException:
            self._container.close()
            raise
        self._codec = self._stream.codec_context
        self._codec.thread_type = "NONE"
        self._codec.thread_count = 1
        base = self._stream.time_base
        self._base = Fraction(base) if base else Fraction(1, 1000)
        start = self._container.start_time
        # Of the container: sound may begin before the pictures.
        self._start = Fraction(start, 1_000_000) if start is not None else Fraction(0)
        self._forget(from_start=True)

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _pictures(self) -> Any:
        """Return the stream to read: the best one that is no cover picture."""
        disposition = self._av.stream.Disposition
        streams = [s for s in self._container.streams.video if s.codec_context is not None]
        films = [s for s in streams if not s.disposition & disposition.attached_pic]
        if not films:
            covers = len(self._container.streams.video)
            what = "a cover picture only" if covers else "no pictures"
            raise ImageReadError(self._name, f"a file with {what}, such as music")
        best = self._container.streams.best("video")
        chosen = best if any(best is s or best.index == s.index for s in films) else films[0]
        codec = chosen.codec_context.codec.name
        if codec not in _CODECS:
            raise ImageReadError(self._name, f"a film in the codec {codec}, which is not read")
        if not chosen.codec_context.width or not chosen.codec_context.height:
            raise ImageReadError(self._name, _NO_FRAMES)
        return chosen

    def memory(self) -> int:
        """Return the bytes that decoding and converting a frame takes at most."""
        form = self._codec.format
        bits: int = form.padded_bits_per_pixel if form is not None else 24
        pixels: int = self.width * self.height
        index = min(self._size // _INDEX_SHARE, _MOST_INDEX)
        held = _HELD_ALONE if self._codec.codec.name in _ALONE else _HELD
        return pixels * (math.ceil(bits * held / 8) + _COPIES) + index + _FIXED

    def estimate(self) -> Survey:
        """Return a survey by the header alone, which may be wrong."""
        lasting = self._container.duration
        stream = self._stream.duration
        if stream is not None:
            seconds = stream * self._base
        elif lasting is not None:
            seconds = Fraction(lasting, 1_000_000)
        else:
            return Survey()
        return Survey(last=max(0, math.ceil(seconds * 1000) - 1))

    def survey(self) -> Survey:
        """Read the film to its end, without decoding it."""
        last: int | None = None  # of the pictures
        ends: dict[int, int] = {}  # of each stream, in its own units
        for packet in self._packets(every_stream=True):
            at = packet.pts if packet.pts is not None else packet.dts
            if at is None or packet.is_corrupt:
                continue
            index = packet.stream_index
            if index == self._stream.index and not packet.is_discard:
                last = at if last is None else max(last, at)
            ends[index] = max(ends.get(index, at), at + (packet.duration or 0))
        if last is None:
            raise ImageReadError(self._name, _NO_FRAMES)
        end = Fraction(0)
        for stream in self._container.streams:
            if stream.index in ends and stream.type in ("video", "audio") and stream.time_base:
                end = max(end, ends[stream.index] * Fraction(stream.time_base) - self._start)
        whole = Fraction(self._container.duration or 0, 1_000_000)
        short = whole - end > max(_SHORT, whole * _SHORT_SHARE)
        self._restart()
        return Survey(
            last=max(0, math.floor((last * self._base - self._start) * 1000)),
            whole=round(whole * 1000) if short else None,
        )

    def exif(self) -> Exif:
        """Return what a phone or a camera wrote into the film."""
        tags = {**self._stream.metadata, **self._container.metadata}
        lat, lon = _place(tags)
        make, model = _first(tags, _MAKERS), _first(tags, _MODELS)
        named = [word for word in (make, model) if word]
        repeats = bool(make and model and model.lower().startswith(make.split()[0].lower()))
        return Exif.from_json({
            "taken_at": _moment(tags), "lat": lat, "lon": lon,
            "camera": model if repeats else " ".join(named) or None,
        })  # fmt: skip

    def frame(self, at: int, max_pixels: int) -> Image.Image:
        """Return the frame that is shown at a time: upright, in sRGB, with square pixels.

        Args:
            at: Milliseconds from the film's start.
            max_pixels: Larger frames are refused.

        Raises:
            ImageReadError: The film is damaged there, or ends before, or the frame is too large.
        """
        return self._image(self._at(Fraction(at, 1000)), max_pixels)

    def _at(self, time: Fraction) -> Any:
        frame = self._found(time)
        due, ahead = self._due(time), self._ahead
        if frame is None:
            # Sound that begins earlier, or a recording that began between two key frames.
            if ahead is not None and (due is None or self._time(ahead) - time <= _LATE_START):
                return ahead
            raise ImageReadError(self._name, _DAMAGED)
        if due is not None and due - self._time(frame) > _STALE:
            raise ImageReadError(self._name, _DAMAGED)
        beyond = time - self._time(frame) > _NEAR and time * 1000 > self.estimate().last
        if ahead is None and beyond:
            raise ImageReadError(self._name, "the film ends before this time")
        return frame

    def _found(self, time: Fraction) -> Any:
        """Return the last frame that begins until a time and can be decoded; None without one."""
        current, ahead = self._current, self._ahead
        if current is not None and ahead is not None and (
            self._time(current) <= time < self._time(ahead)
        ):  # fmt: skip
            return current
        if self._must_seek(time):
            self._seek(time)
        frame = self._forward(time)
        for back in _FURTHER_BACK:
            if frame is not None or self._from_start:
                break
            self._seek(time - back)
            frame = self._forward(time)
        if frame is None and not self._from_start:
            self._restart()
            frame = self._forward(time)
        return frame

    def _due(self, time: Fraction) -> Fraction | None:
        """Return when the frame begins that should be shown at a time, from the packets read."""
        last = self._timestamp(time)
        due = max((begins for begins in self._begins if begins <= last), default=None)
        return None if due is None else due * self._base - self._start

    def _time(self, frame: Any) -> Fraction:
        at = frame.pts if frame.pts is not None else frame.dts
        return (at or 0) * self._base - self._start

    def _must_seek(self, time: Fraction) -> bool:
        current = self._current
        if current is None:
            return self._ahead is not None or time > 1
        if time < self._time(current):
            return True
        entries = self._stream.index_entries
        if len(entries):
            row = entries.search_timestamp(self._timestamp(time))
            return bool(row >= 0 and entries[row].timestamp > current.pts)
        return time - self._time(current) > _NEAR

    def _timestamp(self, time: Fraction) -> int:
        return math.floor((time + self._start) / self._base)

    def _seek(self, time: Fraction) -> None:
        """Go to a key frame before a time, about."""
        if time <= 0:
            self._restart()
            return
        try:
            self._container.seek(self._timestamp(time), stream=self._stream, backward=True)
        except self._av.error.FFmpegError:
            self._restart()
            return
        self._forget(from_start=False)

    def _restart(self) -> None:
        self._container.close()
        self._open()

    def _forget(self, *, from_start: bool) -> None:
        self._current: Any = None
        self._ahead: Any = None
        self._begins: list[int] = []  # when the packets read begin, in the stream's units
        self._from_start = from_start
        self._decoded = self._decode()

    def _forward(self, time: Fraction) -> Any:
        """Decode until a frame begins after a time; return the one before, or None."""
        if len(self._begins) > _MANY:  # those that are long past
            self._begins = sorted(self._begins)[-_MANY // 2 :]
        if self._ahead is not None:
            if self._time(self._ahead) > time:
                return self._current
            self._current, self._ahead = self._ahead, None
        for frame in self._decoded:
            if frame.is_corrupt:
                continue
            if self._time(frame) > time:
                self._ahead = frame
                break
            self._current = frame
        return self._current

    def _decode(self) -> Iterator[Any]:
        """Yield frames; packets that cannot be decoded are left out."""
        for packet in self._packets():
            if packet.pts is not None and not packet.is_discard:
                self._begins.append(packet.pts)
            try:
                yield from packet.decode()
            except self._av.error.FFmpegError:
                continue
        try:
            yield from self._codec.decode(None)
        except self._av.error.FFmpegError:
            return

    def _packets(self, *, every_stream: bool = False) -> Iterator[Any]:
        """Yield packets to the end of what can be read."""
        errors = 0
        packets = self._container.demux(*(() if every_stream else (self._stream,)))
        while errors < _MOST_ERRORS:
            try:
                packet = next(packets)
            except (StopIteration, IndexError):  # PyAV's, at the end of a film with late streams
                return
            except self._av.error.FFmpegError:
                errors += 1
                packets = self._container.demux(*(() if every_stream else (self._stream,)))
                continue
            if packet.size:
                errors = 0
                yield packet

    def _image(self, frame: Any, max_pixels: int) -> Image.Image:
        turn = _turn(frame)
        width, height = _square(frame.width, frame.height, self._stream.sample_aspect_ratio)
        if max(width * height, frame.width * frame.height) > max_pixels:
            size = f"{width} x {height} pixels"
            raise ImageReadError(self._name, f"{size}; no more than {max_pixels} are allowed")
        alpha = frame.format.name != "pal8" and any(c.is_alpha for c in frame.format.components)
        options: dict[str, Any] = {}
        if frame.colorspace == _UNKNOWN_MATRIX and not frame.format.is_rgb:
            options["src_colorspace"] = _ITU_709 if frame.height >= _HD_LINES else _ITU_601
        curve, colours = _CURVES.get(frame.color_trc, "sdr"), _WIDE.get(frame.color_primaries)
        deep = not alpha and (curve != "sdr" or colours is not None)
        interlaced = frame.interlaced_frame
        flags = self._av.video.reformatter.Interpolation
        exact = flags.FULL_CHR_H_INT | flags.ACCURATE_RND | flags.BITEXACT
        picture = frame.reformat(
            width=frame.width if interlaced else width,
            height=frame.height if interlaced else height,
            format="rgba" if alpha else "rgb48le" if deep else "rgb24",
            interpolation=flags.BICUBIC | exact, **options,
        )  # fmt: skip
        array: Any = picture.to_ndarray()
        if interlaced:  # one of the two moments that it holds, line by line
            array = np.ascontiguousarray(array[::2])
        if deep:
            array = deep_to_srgb(array, curve, colours or "srgb")
        image = Image.fromarray(array)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = to_rgb(image)
        return image if turn is None else image.transpose(turn)


def _turn(frame: Any) -> Image.Transpose | None:
    """Return what makes a frame upright, from its display matrix."""
    for each in frame.side_data:
        if each.type.name == _DISPLAY_MATRIX:
            matrix = np.frombuffer(bytes(each)[:20], np.int32)
            a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
            if abs(a) + abs(d) >= abs(b) + abs(c):
                b = c = 0
            else:
                a = d = 0
            return _UPRIGHT.get((_sign(a), _sign(b), _sign(c), _sign(d)))
    return None


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def _square(width: int, height: int, ratio: Fraction | None) -> tuple[int, int]:
    """Return the size with square pixels; one side grows."""
    if not ratio or not Fraction(1, _MOST_PIXEL_RATIO) <= ratio <= _MOST_PIXEL_RATIO:
        return width, height
    if ratio >= 1:
        return round(width * ratio), height
    return width, round(height / ratio)


def _first(tags: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((tags[name] for name in names if tags.get(name, "").strip()), None)


def _moment(tags: Mapping[str, str]) -> str | None:
    """Return when the recording began, as RFC 3339."""
    for name in _MOMENTS:
        found = _MOMENT.fullmatch(tags.get(name, "").strip())
        if found is not None and found[1] not in _NO_CLOCK:
            zone = found[3] or "Z"
            if zone != "Z" and ":" not in zone:
                zone = f"{zone[:3]}:{zone[3:]}"
            return f"{found[1]}T{found[2]}{zone}"
    return None


def _place(tags: Mapping[str, str]) -> tuple[float | None, float | None]:
    """Return latitude and longitude of an ISO 6709 text."""
    found = _PLACE.fullmatch((_first(tags, _PLACES) or "").strip())
    if found is None:
        return None, None
    lat, lon = float(found[1]), float(found[2])
    return (None, None) if (lat, lon) == (0, 0) else (lat, lon)
