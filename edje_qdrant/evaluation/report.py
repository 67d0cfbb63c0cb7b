"""Results of an evaluation, as text with tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edje_qdrant.errors import MissingExtraError
from edje_qdrant.evaluation.bootstrap import LEVEL, Difference
from edje_qdrant.evaluation.metrics_table import System
from edje_qdrant.evaluation.protocol import Protocol
from edje_qdrant.text import printable
from edje_qdrant.types import FailedImage

__all__ = ["Evaluation"]

_TITLES = {
    "t2i": "Text to image: {queries:,} captions asked of {pool:,} images",
    "i2t": "Image to text: {queries:,} images asked of {pool:,} captions",
}
_FAILED_SHOWN = 10
_CELL = 22


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Hold all results of one evaluation.

    Attributes:
        data: Name of the data.
        split: Split of a Karpathy file.
        protocol: Protocol of the evaluation.
        in_memory: Whether exact cosines in memory were used instead of the vector engine.
        images: Number of images in the pool, without `strangers`.
        captions: Number of captions in the pool.
        failed: Images left out because they cannot be read.
        lost_captions: Number of captions of these images.
        twins: Number of paths with the same bytes as another path; both are one image with the
            captions of both.
        strangers: Number of images in the collection that no annotation names.
        systems: Metrics of each model, direction and number of candidates.
        files: Paths of the files written: `json`, and lists `cases`, `sheets` and `plots`.
        seconds: Wall-clock time of the evaluation.
    """

    data: str
    split: str | None
    protocol: Protocol
    in_memory: bool
    images: int
    captions: int
    failed: tuple[FailedImage, ...]
    lost_captions: int
    twins: int
    strangers: int
    systems: tuple[System, ...]
    files: Mapping[str, str | list[str]]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the evaluation as a JSON object."""
        return {
            "data": self.data,
            "split": self.split,
            "protocol": self.protocol.name,
            "in_memory": self.in_memory,
            "pictures": self.images,
            "captions": self.captions,
            "failed": [{"path": f.path, "reason": f.reason} for f in self.failed],
            "lost_captions": self.lost_captions,
            "twins": self.twins,
            "strangers": self.strangers,
            "systems": [system.as_dict() for system in self.systems],
            "files": dict(self.files),
            "seconds": round(self.seconds, 1),
        }

    def text(self) -> str:
        """Return the evaluation as text."""
        where = printable(f"{self.data}, split {self.split}" if self.split else self.data)
        name = {"karpathy": "Karpathy protocol", "full": "full pool"}[self.protocol.name]
        lines = [f"{where}: {self.images:,} images, {self.captions:,} captions, {name}"]
        lines += self._notes()
        for direction in dict.fromkeys(system.direction for system in self.systems):
            lines += ["", *self._table([s for s in self.systems if s.direction == direction])]
        lines += ["", f"In brackets: {LEVEL:.0%} of the bootstrap's resamples of whole images."]
        return "\n".join([*lines, *self._written()])

    def _notes(self) -> list[str]:
        notes = []
        if self.failed:
            notes.append(
                f"{len(self.failed):,} images cannot be read; they and their "
                f"{self.lost_captions:,} captions are left out:"
            )
            notes += [printable(f"  {f.path}: {f.reason}") for f in self.failed[:_FAILED_SHOWN]]
            if len(self.failed) > _FAILED_SHOWN:
                notes.append(f"  and {len(self.failed) - _FAILED_SHOWN:,} more, all in the JSON")
        if self.twins:
            notes.append(f"{self.twins:,} files have the bytes of another; each pair is one image")
        if self.strangers:
            role = "are left out in memory" if self.in_memory else "take part as wrong answers"
            notes.append(
                f"the collection holds {self.strangers:,} images that no annotation names; "
                f"they {role}"
            )
        return notes

    def _table(self, systems: Sequence[System]) -> list[str]:
        title = _TITLES[systems[0].direction]
        timed = any(system.ms_per_query is not None for system in systems)
        head = "".join(f"{cut:^{_CELL}}" for cut in self.protocol.shown)
        lines = [
            title.format(queries=systems[0].queries, pool=systems[0].pool),
            "",
            f"{'':<20}{head}{'ms' if timed else '':>8}".rstrip(),
        ]
        models = list(dict.fromkeys(system.model for system in systems))
        for model in models:
            own = [system for system in systems if system.model == model]
            if len(models) > 1:
                lines.append(
                    f"{printable(model)} ({own[0].tokens_per_image} tokens, "
                    f"{own[0].bytes_per_image:,} bytes an image, {own[0].precision})"
                )
            ends = own[0].intervals["first_stage"]
            lines.append(self._row("  first stage", own[0].first_stage, ends, None))
            for one in own:
                label = f"  {one.num_candidates} reranked"
                ends = one.intervals["reranked"]
                lines.append(self._row(label, one.reranked, ends, one.ms_per_query))
            lines.append(self._gain(f"  gain at {own[-1].num_candidates}", own[-1].difference))
            lines += [
                self._gain(f"  over {printable(_short(other.model))}", other.difference)
                for other in own[-1].against
                if other.model != model
            ]
        return lines

    def _row(
        self,
        label: str,
        found: Mapping[str, float],
        ends: Mapping[str, tuple[float, float]],
        milliseconds: float | None,
    ) -> str:
        cells = [
            f"{found[cut]:.1%} [{100 * ends[cut][0]:.1f}, {100 * ends[cut][1]:.1f}]"
            for cut in self.protocol.shown
        ]
        timed = "" if milliseconds is None else f"{milliseconds:>8.1f}"
        return f"{label:<20}{''.join(f'{cell:^{_CELL}}' for cell in cells)}{timed}".rstrip()

    def _gain(self, label: str, found: Mapping[str, Difference]) -> str:
        cells = [
            f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
            for d in (found[cut] for cut in self.protocol.shown)
        ]
        return f"{label:<20}{''.join(f'{cell:^{_CELL}}' for cell in cells)}".rstrip()

    def _written(self) -> list[str]:
        lines = [
            printable(f"{kind + ':':<8}{path}")
            for kind, paths in self.files.items()
            for path in ([paths] if isinstance(paths, str) else paths)
        ]
        if not self.files["plots"]:
            lines.append(f"plots:  none, as {MissingExtraError('matplotlib', 'train')}")
        return lines


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"…{name[-11:]}"
