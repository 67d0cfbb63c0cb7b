"""Images in data sets of the Hugging Face library `datasets`: objects, or saved folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edje_qdrant.errors import ConfigError, ImageReadError, MissingExtraError
from edje_qdrant.images import error_reason, image_bytes_id
from edje_qdrant.sources.protocol import Fetched, ImageSource, ListedImage, Listing
from edje_qdrant.sources.stamp import file_stamp
from edje_qdrant.sources.table import KeptOpen, chosen_column, image_bytes, row_fields
from edje_qdrant.sources.uris import dataset_path, in_memory_path, part_path
from edje_qdrant.types import FailedImage

__all__ = ["DatasetSource", "is_dataset", "is_saved_dataset", "opened_rows", "saved_datasets"]

# What `save_to_disk` writes into the folder of a data set, and into that of several splits.
_ONE, _SEVERAL = "state.json", "dataset_dict.json"


def is_dataset(value: object) -> bool:
    """Return whether an object is a data set, a stream of one, or a dict of its splits."""
    names = {kind.__name__ for kind in type(value).__mro__}
    return bool(names & {"Dataset", "IterableDataset", "DatasetDict", "IterableDatasetDict"}) and (
        type(value).__module__.partition(".")[0] == "datasets"
    )


def is_saved_dataset(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`."""
    return (folder / _ONE).is_file() or (folder / _SEVERAL).is_file()


def saved_datasets(folder: Path) -> list[str]:
    """Return the folders of the data sets in a folder that `save_to_disk` wrote, one a split."""
    if (folder / _ONE).is_file():
        return [str(folder)]
    return [str(each) for each in sorted(folder.iterdir()) if (each / _ONE).is_file()]


class DatasetSource(ImageSource):
    """The images of a data set, in the order of its rows; the other columns become fields.

    The rows of a saved folder are read back from it. Those of an object have paths that begin with
    `datasets:`, those of a stream `memory:`, and cannot be read back, unless the data set names
    files that are there.

    Args:
        dataset: A `datasets.Dataset`, an `IterableDataset`, a dict of splits, or the folder of a
            data set.
        column: The column of the images; by default the only one.

    Raises:
        ConfigError: There is no column of images.
        MissingExtraError: The library is not installed.
    """

    def __init__(self, dataset: Any, column: str | None = None) -> None:
        self.name = str(dataset) if isinstance(dataset, str | Path) else "the data set"
        splits = (
            [(None, part) for part in saved_datasets(Path(os.path.abspath(dataset)))]
            if isinstance(dataset, str | Path)
            else [*dataset.items()]
            if isinstance(dataset, Mapping)
            else [(None, dataset)]
        )
        self._parts = [_Rows(part, column, split) for split, part in splits]
        scopes = [part.scope for part in self._parts]
        # What a stream held before is not known.
        self.scope = tuple(scope for scope in scopes if scope) if all(scopes) else ()

    def images(self) -> Listing:
        """List the images."""
        for part in self._parts:
            yield from part.images()

    def count(self) -> int | None:
        """Return the number of rows; None for a stream."""
        counts = [part.count() for part in self._parts]
        return None if None in counts else sum(count or 0 for count in counts)


class _Rows:
    """The rows of one split."""

    def __init__(self, dataset: Any, column: str | None, split: str | None) -> None:
        self._folder = dataset if isinstance(dataset, str) else None
        self._split = split
        if self._folder is not None:
            dataset = _load(self._folder)
        self._where = self._folder or "the data set"
        features = dict(getattr(dataset, "features", None) or {})
        if not features:
            row: Mapping[str, Any] = next(iter(dataset), {})
            features = dict.fromkeys(row)
            found = [name for name, value in row.items() if _may_be_image(value)]
        else:
            found = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
            found = found or [
                name for name, kind in features.items()
                if getattr(kind, "dtype", None) in ("binary", "large_binary")
            ]  # fmt: skip
        self._column = chosen_column(found, column, self._where, ", ".join(features))
        self._labels = {
            name: kind.names
            for name, kind in features.items()
            if type(kind).__name__ == "ClassLabel"
        }
        kind: Any = features.get(self._column)
        if type(kind).__name__ == "Image" and getattr(kind, "decode", False):
            dataset = dataset.cast_column(self._column, type(kind)(decode=False))
        self._dataset = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
        self._streams = _is_stream(dataset)
        fingerprint = str(getattr(dataset, "_fingerprint", ""))
        if self._folder is not None:
            changed = file_stamp(os.path.join(self._folder, _ONE)).get("modified_at")
            self._stamp = {"modified_at": changed} if changed else {}
            self._container = self._folder
        else:
            self._stamp = {"etag": fingerprint} if fingerprint else {}
            self._container = dataset_path(fingerprint)
        self.scope = None if self._streams else f"{self._container}#"

    def count(self) -> int | None:
        return None if self._streams else len(self._dataset)

    def images(self) -> Listing:
        for number, row in enumerate(self._light_rows()):
            fields = row_fields(row, self._column, self._where)
            for name, names in self._labels.items():
                if isinstance(fields.get(name), int) and 0 <= fields[name] < len(names):
                    fields[name] = names[fields[name]]
            if self._split is not None:
                fields.setdefault("split", str(self._split))
            image = row.get(self._column)
            if isinstance(image, Mapping) and _is_file(image):
                yield ListedImage(os.path.abspath(image["path"]), fields)
            elif self._streams:
                yield self._of_stream(image, fields, number)
            else:
                path = part_path(self._container, row=number, column=self._column)
                reader = partial(self.read, number)
                yield ListedImage(path, fields, reader=reader, stamp=self._stamp)

    def read(self, number: int) -> Fetched:
        path = part_path(self._container, row=number, column=self._column)
        try:
            content = image_bytes(self._dataset[number][self._column])
        except IndexError as error:
            raise ImageReadError(path, f"the data set has {len(self._dataset)} rows") from error
        except Exception as error:  # the library raises errors of many types
            raise ImageReadError(path, error_reason(error)) from error
        if content is None:
            raise ImageReadError(path, "the row has no bytes of an image")
        return Fetched(content)

    def _light_rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield the rows; without their images if these can be read later, by number."""
        rows = self._dataset
        if not self._streams and len(rows) and image_bytes(rows[0][self._column]) is not None:
            if len(rows.column_names) == 1:
                yield from ({} for _ in range(len(rows)))
                return
            rows = rows.remove_columns([self._column])
        yield from rows

    def _of_stream(
        self, image: Any, fields: Mapping[str, Any], number: int
    ) -> ListedImage | FailedImage:
        name = f"row {number} of {self._where}"
        content = image_bytes(image)
        if content is None:
            return FailedImage(name, "the row has no bytes of an image")
        try:
            return ListedImage(in_memory_path(image_bytes_id(content, name)), fields, content)
        except ImageReadError as error:
            return FailedImage(name, error.reason)


_open: KeptOpen[_Rows] = KeptOpen()


def opened_rows(folder: str, column: str) -> _Rows:
    """Return the rows of a saved data set, which stay open while it is unchanged; see `read_row`.

    Raises:
        ConfigError: It cannot be read, or has no such column.
        MissingExtraError: The library is not installed.
    """
    stamp = file_stamp(os.path.join(folder, _ONE))
    return _open.column(folder, column, stamp, lambda: _Rows(folder, column, None))


def _load(folder: str) -> Any:
    """Return a saved data set.

    Raises:
        ConfigError: It cannot be read.
        MissingExtraError: The library is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "datasets") from error
    try:
        return datasets.load_from_disk(folder)
    except Exception as error:  # the library raises errors of many types
        raise ConfigError(f"cannot read the data set {folder}: {error_reason(error)}") from error


def _is_stream(dataset: Any) -> bool:
    return any(kind.__name__ == "IterableDataset" for kind in type(dataset).__mro__)


def _may_be_image(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, Mapping) and "bytes" in value)


def _is_file(image: Mapping[str, Any]) -> bool:
    path = image.get("path")
    return image.get("bytes") is None and isinstance(path, str) and os.path.isfile(path)
