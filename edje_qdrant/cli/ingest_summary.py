"""What `ingest` prints at its end: counts, failures and left-out files by reason, next commands."""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edje_qdrant.cli.options import Place
from edje_qdrant.errors import without_keys

if TYPE_CHECKING:
    from edje_qdrant.types import FailedImage, IngestReport

__all__ = [
    "counts_of",
    "failure_groups",
    "kept_lines",
    "left_out_lines",
    "next_steps",
    "old_version_lines",
    "place_options",
]

# Paths shown for each reason, and reasons.
_PATHS, _REASONS = 5, 8
# The options that read what is left out without them.
_OPTIONS = {"video": "--frames-every 2s adds frames", "document": "--pdf-pages adds pages of PDFs"}
_NUMBER = re.compile(r"\d+")
# As MissingExtraError writes it.
_EXTRA = re.compile(r"pip install 'edje-qdrant\[([\w-]+)\]'")
# A text that the model of the collection understands.
_DEMO_TEXT, _TEXT = "a red circle", "a dog in the snow"


def counts_of(report: IngestReport, *, prune: bool, points: int) -> str:
    """Return the counts of an ingest in one line; those that are unusual only above zero."""
    parts = [
        f"{report.added} added",
        *([f"{report.updated} with new fields"] if report.updated else []),
        f"{report.known} there already",
        *([f"{report.twice} twice in the source"] if report.twice else []),
        *([f"{report.pruned} pruned"] if prune else []),
        f"{len(report.failed)} failed",
    ]
    if report.left_out:
        parts.append(f"{sum(report.left_out.values())} left out")
    return (
        f"{', '.join(parts)} in {_duration(report.seconds)} "
        f"({report.images_per_second:.1f} images/s); the collection holds {points}"
    )


def old_version_lines(report: IngestReport) -> list[str]:
    """Return a line on images that were edited and whose old versions are still there, if any."""
    number = report.old_versions
    if not number:
        return []
    what = "image is an old version" if number == 1 else "images are old versions"
    return [f"edited: {number} {what}, whose file holds another image now; the collection has both"]


def kept_lines(report: IngestReport) -> list[str]:
    """Return a line on images that are gone from the source, but not from elsewhere, if any."""
    number = report.kept_elsewhere
    if not number:
        return []
    what = "image is" if number == 1 else "images are"
    return [f"kept: {number} {what} gone from here; an ingest found a copy elsewhere"]


def failure_groups(failures: Iterable[FailedImage]) -> list[str]:
    """Return lines with the number of images that failed for each reason, and some of their paths.

    The most frequent reason comes first. Reasons that differ in numbers alone are one.
    """
    paths: dict[str, list[str]] = defaultdict(list)
    reasons: dict[str, set[str]] = defaultdict(set)
    for failure in failures:
        key = _NUMBER.sub("...", failure.reason)
        paths[key].append(failure.path)
        reasons[key].add(failure.reason)
    groups = sorted(paths.items(), key=lambda group: -len(group[1]))
    lines = ["failed:"] if groups else []
    for key, failed in groups[:_REASONS]:
        reason = key if len(reasons[key]) > 1 else reasons[key].pop()
        lines.append(f"  {len(failed)} x {reason}")
        lines += [f"      {path}" for path in failed[:_PATHS]]
        if len(failed) > _PATHS:
            lines.append(f"      and {len(failed) - _PATHS} more, all listed by --json")
    if len(groups) > _REASONS:
        rest = sum(len(failed) for _, failed in groups[_REASONS:])
        lines.append(f"  {rest} for {len(groups) - _REASONS} other reasons, all listed by --json")
    return lines


def left_out_lines(left_out: Mapping[str, int]) -> list[str]:
    """Return a line for each kind of what was left out, with the details of the kind."""
    kinds: dict[str, dict[str, int]] = defaultdict(dict)
    for name, number in left_out.items():
        kind, _, detail = name.partition(" (")
        kinds[kind][detail.removesuffix(")")] = number
    lines = ["left out:"] if kinds else []
    for kind, details in sorted(kinds.items(), key=lambda each: -sum(each[1].values())):
        ordered = sorted(details.items(), key=lambda each: -each[1])
        named = [(detail, number) for detail, number in ordered if detail]
        shown = ", ".join(
            detail if len(named) == 1 else f"{number} {detail}" for detail, number in named[:6]
        )
        shown += ", ..." if len(named) > 6 else ""
        hint = f" ({_OPTIONS[kind]})" if kind in _OPTIONS else ""
        lines.append(f"  {sum(details.values())} x {kind}{f': {shown}' if shown else ''}{hint}")
    return lines


def place_options(place: Place, collection: str) -> str:
    """Return the options that name a collection on the command line, quoted for a shell."""
    options = ["--url" if "://" in place.location else "--index", place.location]
    if place.server.get("prefer_grpc"):
        options.append("--grpc")
    if place.server.get("grpc_port") is not None:
        options += ["--grpc-port", str(place.server["grpc_port"])]
    if collection != "images":
        options += ["--collection", collection]
    return shlex.join([without_keys(option) for option in options])


def next_steps(
    report: IngestReport, source: str, place: str, *, points: int, model: str, web: bool
) -> list[str]:
    """Return what to do after an ingest, as commands where there are some.

    Args:
        report: The outcome.
        source: The source, as it was given.
        place: From `place_options`.
        points: Images in the collection.
        model: The collection's model.
        web: Whether the packages of the service are installed.
    """
    steps = []
    folder = Path(source).is_dir()
    needing = [names for f in report.failed if (names := _EXTRA.findall(f.reason))]
    if needing:
        extras = ",".join(sorted({name for names in needing for name in names}))
        steps.append(
            f"pip install 'edje-qdrant[{extras}]'  # then this again: "
            + (
                "1 failed image needs it"
                if len(needing) == 1
                else f"{len(needing)} failed images need it"
            )
        )
    if report.old_versions and folder:  # from a manifest, it would delete all other images
        steps.append(
            f"edje-qdrant ingest {shlex.quote(source)} {place} --prune  # deletes the old versions "
            "of edited images, and images that are gone"
        )
    if points:
        text = _DEMO_TEXT if model == "demo" else _TEXT
        steps.append(f"edje-qdrant search {shlex.quote(text)} {place}")
        if not web:
            steps.append("pip install 'edje-qdrant[web]'  # for the page")
        shown = _shown_place(source)
        images = "" if shown is None else f" --images {shlex.quote(shown)}"
        steps.append(f"edje-qdrant serve {place}{images}  # a page to search with")
    return ["next:", *(f"  {step}" for step in steps)] if steps else []


def _shown_place(source: str) -> str | None:
    """Return the folder or the address below which the service finds the images of a source.

    Of a manifest on disk, the folder that holds all its images; None if there is none.
    """
    # Not at the top: `--help` reads this module, and sources load numpy.
    from edje_qdrant.sources.manifest import MANIFEST_SUFFIXES, ManifestSource
    from edje_qdrant.sources.protocol import ListedImage
    from edje_qdrant.sources.uris import is_uri, without_secrets

    if not is_uri(source):
        path = Path(source.partition("#column=")[0])
        if path.is_dir():
            return str(source)
        if path.suffix.lower() in MANIFEST_SUFFIXES:
            listed = ManifestSource(path).images() if path.is_file() else ()
            return _common_folder(item.path for item in listed if isinstance(item, ListedImage))
        return str(path.parent)
    begin = re.split(r"[*?\[{]", without_secrets(source), maxsplit=1)[0]  # of a pattern
    scheme, _, place = begin.partition("://")
    return f"{scheme}://{place.rpartition('/')[0]}/" if "/" in place else None


def _common_folder(paths: Iterable[str]) -> str | None:
    """Return the folder that holds all files; None if it is the root, or holds the home folder.

    None, too, if one is no file on this machine: an address.
    """
    from edje_qdrant.sources.uris import is_uri, split_part

    common: str | None = None
    for path in paths:
        if is_uri(path):
            return None
        part = split_part(path)
        folder = os.path.dirname(path if part is None else part[0])
        common = folder if common is None else os.path.commonpath([common, folder])
        if os.path.dirname(common) == common:
            return None
    if common is None or (Path.home() / "").is_relative_to(common):
        return None
    return common


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
