"""Which picture has which captions: the annotation files that people train on and measure with."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edje_qdrant.errors import ConfigError

__all__ = ["Annotation", "group_by_image", "read_annotations"]

# Karpathy's COCO split calls the part of COCO's validation set that all train on "restval".
_SPLITS = {"train": ("train", "restval")}


@dataclass(frozen=True, slots=True)
class Annotation:
    """Hold one picture and what is said of it.

    Attributes:
        image: Absolute path of the picture's file.
        captions: At least one, none blank.
        where: The place it was read from, `file:line`, for messages.
    """

    image: str
    captions: tuple[str, ...]
    where: str


def read_annotations(
    path: str | Path, *, images: str | Path | None = None, split: str | None = None
) -> list[Annotation]:
    """Read an annotation file.

    Three kinds are known. `.jsonl`: each line an object `{"image": path, "caption": text or list
    of texts}`. `.json` with a list of such objects, as BLIP and its successors use. `.json` with
    an object whose `images` is a list: Karpathy's files for COCO and Flickr30k, with `filename`,
    `split`, `sentences` and, for COCO, `filepath`.

    Args:
        path: The file.
        images: Folder that relative picture paths start from; the file's own by default.
        split: Which part of a Karpathy file; `train` takes `restval` in, as is usual. Other files
            have no parts, and asking for one is refused.

    Returns:
        In the order of the file; pictures are not opened.

    Raises:
        ConfigError: The file cannot be read, holds nothing, or a field is missing or wrong; the
            message names file and line.
    """
    path = Path(path)
    root = os.path.abspath(images if images is not None else path.parent)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the annotations {path}: {error}") from error
    if path.suffix.lower() == ".jsonl":
        found = _lines(path, text, root)
        karpathy = False
    else:
        data = _parse(text, f"{path}", first_line=1)
        karpathy = isinstance(data, dict)
        items = data.get("images") if isinstance(data, dict) else data
        if not isinstance(items, list):
            raise ConfigError(
                f'{path}:1: neither a list of {{"image", "caption"}} nor a Karpathy file with a '
                'list "images"'
            )
        read = _karpathy if karpathy else _pair
        found = []
        for number, item in enumerate(items):
            try:
                annotation = read(item, root, split)
            except ValueError as error:
                line = _line_of(text, number, karpathy)
                raise ConfigError(f"{path}:{line}: item {number + 1}: {error}") from error
            if annotation is not None:
                found.append(Annotation(*annotation, f"{path}: item {number + 1}"))
    if split is not None and not karpathy:
        raise ConfigError(
            f"{path} has no splits, so {split!r} cannot be chosen; only Karpathy files do"
        )
    if not found:
        part = f" of the split {split!r}" if split else ""
        raise ConfigError(f"{path} holds no annotations{part}")
    return found


def group_by_image(annotations: Iterable[Annotation]) -> list[Annotation]:
    """Gather the captions of pictures that are named more than once, in order of first mention."""
    gathered: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        gathered.setdefault(annotation.image, []).append(annotation)
    return [
        Annotation(image, tuple(c for a in parts for c in a.captions), parts[0].where)
        for image, parts in gathered.items()
    ]


def _lines(path: Path, text: str, root: str) -> list[Annotation]:
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            pair = _pair(_parse(line, f"{path}", first_line=number), root, None)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
        found.append(Annotation(*pair, where))
    return found


def _parse(text: str, path: str, *, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ConfigError(f"{path}:{line}: no JSON: {error.msg}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}:{first_line}: no JSON: nested too deep") from error


def _pair(item: Any, root: str, _: str | None) -> tuple[str, tuple[str, ...]]:
    if not isinstance(item, dict):
        raise ValueError('not an object {"image", "caption"}')
    caption = _field(item, "caption", (str, list))
    return (
        _image(root, _field(item, "image", (str,))),
        _captions([caption] if isinstance(caption, str) else caption, '"caption"'),
    )


def _karpathy(item: Any, root: str, split: str | None) -> tuple[str, tuple[str, ...]] | None:
    if not isinstance(item, dict):
        raise ValueError('not an object {"filename", "split", "sentences"}')
    part = _field(item, "split", (str,))
    if split is not None and part not in _SPLITS.get(split, (split,)):
        return None
    folder = _field(item, "filepath", (str,)) if "filepath" in item else ""
    sentences = _field(item, "sentences", (list,))
    raw = [_field(s, "raw", (str,)) if isinstance(s, dict) else None for s in sentences]
    name = _field(item, "filename", (str,))
    return _image(root, os.path.join(folder, name)), _captions(raw, '"sentences"')


def _field(item: dict[str, Any], name: str, kinds: tuple[type, ...]) -> Any:
    if name not in item:
        raise ValueError(f'"{name}" is missing')
    value = item[name]
    if not isinstance(value, kinds):
        wanted = " or ".join({str: "text", list: "a list"}[kind] for kind in kinds)
        raise ValueError(f'"{name}" must be {wanted}, not {json.dumps(value)[:60]}')
    return value


def _captions(captions: Sequence[Any], name: str) -> tuple[str, ...]:
    if not captions:
        raise ValueError(f"{name} holds no caption")
    for caption in captions:
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"{name} holds {json.dumps(caption)[:60]}, which is no caption")
    return tuple(captions)


def _image(root: str, name: str) -> str:
    if not name:
        raise ValueError("the picture's path is empty")
    return os.path.abspath(os.path.join(root, name))


def _line_of(text: str, number: int, karpathy: bool) -> int:
    """Find the line an item of a list begins in; the file is known to be JSON."""
    start = re.search(r'"images"\s*:\s*\[' if karpathy else r"\[", text)
    assert start is not None
    position, decoder = start.end(), json.JSONDecoder()
    for skipped in range(number + 1):
        space = re.compile(r"[\s,]*").match(text, position)
        assert space is not None
        position = space.end()
        if skipped < number:
            position = decoder.raw_decode(text, position)[1]
    return text.count("\n", 0, position) + 1
