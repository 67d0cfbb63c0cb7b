"""Annotation files: which image has which captions."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edje_qdrant.errors import ConfigError

__all__ = [
    "Annotation",
    "group_by_image",
    "iterate_annotations",
    "of_split",
    "read_annotations",
]

# "restval" is the part of COCO's validation set that Karpathy's split adds to the training set.
_SPLITS = {"train": ("train", "restval")}
_SHOWN = 60
_KINDS: dict[type, str] = {str: "text", list: "a list"}
_DECODER = json.JSONDecoder()
# What separates two values of valid JSON.
_GAP = re.compile(r"[\s,:]*")


@dataclass(frozen=True, slots=True)
class Annotation:
    """One image with its captions.

    Attributes:
        image: Absolute path of the image file.
        captions: At least one, none blank.
        where: Where it was read, `file:line`, for messages.
        part: Its part of a Karpathy file: `train`, `restval`, `val` or `test`.
    """

    image: str
    captions: tuple[str, ...]
    where: str
    part: str | None = None


def read_annotations(
    path: str | Path, *, images: str | Path | None = None, split: str | None = None
) -> list[Annotation]:
    """Read an annotation file.

    Three kinds are supported. `.jsonl`: one object `{"image": path, "caption": text or list of
    texts}` per line. `.json` with a list of such objects, as BLIP uses. `.json` with an object
    whose `images` is a list: Karpathy's files for COCO and Flickr30k, with `filename`, `split`,
    `sentences` and, for COCO, `filepath`.

    Args:
        path: The file.
        images: Folder of relative image paths; the annotation file's folder by default.
        split: Part of a Karpathy file; `train` includes `restval`, as is usual. For other files it
            must be None.

    Returns:
        Annotations in the order of the file; images are not opened.

    Raises:
        ConfigError: The file cannot be read or is empty, or a field is missing or wrong; the
            message names file and line.
    """
    path = Path(path)
    root = _root(path, images)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    karpathy = False
    if path.suffix.lower() == ".jsonl":
        found = _lines(path, text, root)
    else:
        data = _parse(text, f"{path}", first_line=1)
        karpathy = isinstance(data, dict)
        items = data.get("images") if isinstance(data, dict) else data
        if not isinstance(items, list):
            raise ConfigError(
                f'{path}:1: neither a list of {{"image", "caption"}} nor a Karpathy file with a '
                'list "images"'
            )
        found = _items(path, text, items, root, split, karpathy=karpathy)
    if split is not None and not karpathy:
        raise ConfigError(
            f"{path} has no splits, so {split!r} cannot be chosen; only Karpathy files have splits"
        )
    if not found:
        part = f" of the split {split!r}" if split else ""
        raise ConfigError(f"{path} holds no annotations{part}")
    return found


def iterate_annotations(
    path: str | Path, *, images: str | Path | None = None
) -> Iterator[Annotation]:
    """Read a `.jsonl` annotation file lazily, line by line, in constant memory.

    Args:
        path: The file, with any suffix.
        images: Folder of relative image paths; the annotation file's folder by default.

    Raises:
        ConfigError: The file cannot be read, or a field of the line just read is missing or wrong;
            the message names file and line.
    """
    path = Path(path)
    root = _root(path, images)
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _line(path, line.removesuffix("\n"), number, root)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def of_split(annotations: Iterable[Annotation], split: str) -> list[Annotation]:
    """Return the annotations of one split; `train` includes `restval`, as is usual."""
    parts = _SPLITS.get(split, (split,))
    return [annotation for annotation in annotations if annotation.part in parts]


def group_by_image(annotations: Iterable[Annotation]) -> list[Annotation]:
    """Merge annotations of the same image into one, in order of first occurrence."""
    gathered: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        gathered.setdefault(annotation.image, []).append(annotation)
    return [
        replace(parts[0], captions=tuple(c for a in parts for c in a.captions))
        for parts in gathered.values()
    ]


def _lines(path: Path, text: str, root: str) -> list[Annotation]:
    return [
        _line(path, line, number, root)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]


def _line(path: Path, line: str, number: int, root: str) -> Annotation:
    item = _parse(line, f"{path}", first_line=number)
    try:
        return Annotation(*_pair(item, root), f"{path}:{number}")
    except ValueError as error:
        raise ConfigError(f"{path}:{number}: {error}") from error


def _root(path: Path, images: str | Path | None) -> str:
    return os.path.abspath(images if images is not None else path.parent)


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"cannot read the annotations {path}: {error}")


def _items(
    path: Path, text: str, items: list[Any], root: str, split: str | None, *, karpathy: bool
) -> list[Annotation]:
    wanted = None if split is None else _SPLITS.get(split, (split,))
    found = []
    for number, (item, line) in enumerate(zip(items, _lines_of(text), strict=True), start=1):
        where = f"{path}:{line}"
        try:
            if not karpathy:
                found.append(Annotation(*_pair(item, root), where))
                continue
            part = _part(item)
            if wanted is None or part in wanted:
                found.append(Annotation(*_karpathy(item, root), where, part))
        except ValueError as error:
            raise ConfigError(f"{where}: item {number}: {error}") from error
    return found


def _parse(text: str, path: str, *, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ConfigError(f"{path}:{line}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}:{first_line}: not JSON: nested too deep") from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{path}:{first_line}: cannot read the JSON: {error}") from error


def _pair(item: Any, root: str) -> tuple[str, tuple[str, ...]]:
    if not isinstance(item, dict):
        raise ValueError('not an object {"image", "caption"}')
    caption = _field(item, "caption", (str, list))
    return (
        _image(root, _field(item, "image", (str,))),
        _captions([caption] if isinstance(caption, str) else caption, '"caption"'),
    )


def _part(item: Any) -> str:
    if not isinstance(item, dict):
        raise ValueError('not an object {"filename", "split", "sentences"}')
    part: str = _field(item, "split", (str,))
    return part


def _karpathy(item: dict[str, Any], root: str) -> tuple[str, tuple[str, ...]]:
    folder = _field(item, "filepath", (str,)) if "filepath" in item else ""
    raw = []
    for sentence in _field(item, "sentences", (list,)):
        if not isinstance(sentence, dict):
            raise ValueError('"sentences" must hold objects {"raw"}, not ' + _shown(sentence))
        raw.append(_field(sentence, "raw", (str,)))
    name = _field(item, "filename", (str,))
    if not name:
        raise ValueError('"filename" is empty')
    return _image(root, os.path.join(folder, name)), _captions(raw, '"sentences"')


def _field(item: dict[str, Any], name: str, kinds: tuple[type, ...]) -> Any:
    if name not in item:
        raise ValueError(f'"{name}" is missing')
    value = item[name]
    if not isinstance(value, kinds):
        wanted = " or ".join(_KINDS[kind] for kind in kinds)
        raise ValueError(f'"{name}" must be {wanted}, not {_shown(value)}')
    return value


def _captions(captions: Sequence[Any], name: str) -> tuple[str, ...]:
    if not captions:
        raise ValueError(f"{name} holds no caption")
    for caption in captions:
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"{name} holds {_shown(caption)}, which is not a caption")
    return tuple(captions)


def _image(root: str, name: str) -> str:
    if not name:
        raise ValueError('"image" is empty')
    return os.path.abspath(os.path.join(root, name))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _lines_of(text: str) -> Iterator[int]:
    """Yield the line in which each item of the list begins; the text must be valid JSON."""
    position, line = _list_start(text), 1
    counted = 0
    while text[position] != "]":
        line += text.count("\n", counted, position)
        counted = position
        yield line
        position = _next(text, _DECODER.raw_decode(text, position)[1])


def _list_start(text: str) -> int:
    """Return the position of the first item: of the list, or of the object's last `images`."""
    position = _next(text, 0)
    if text[position] == "[":
        return _next(text, position + 1)
    start = 0
    position = _next(text, position + 1)
    while text[position] != "}":
        name, position = _DECODER.raw_decode(text, position)
        position = _next(text, position)
        if name == "images":
            start = _next(text, position + 1)  # after its bracket
        position = _next(text, _DECODER.raw_decode(text, position)[1])
    return start


def _next(text: str, position: int) -> int:
    found = _GAP.match(text, position)
    return found.end() if found else position
