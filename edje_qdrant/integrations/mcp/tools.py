"""What the tools do, apart from the protocol: calls of a retriever, and small JPEG files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from edje_qdrant.collection.collection import user_payload
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.explain.explanation import Explanation
from edje_qdrant.explain.heat_map import draw_heat
from edje_qdrant.explain.match import can_explain, explain_match
from edje_qdrant.files import kind_of
from edje_qdrant.images import DecoderPool
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.integrations.hits import rank_images
from edje_qdrant.integrations.mcp.schemas import (
    CollectionSummary,
    ExplainedMatch,
    ExplainedWord,
    FailedFile,
    FoundImage,
    FoundImages,
    Ingested,
    RankedImage,
    RankedImages,
    ThumbnailOf,
)
from edje_qdrant.model.calibration import match_word
from edje_qdrant.search.options import NUM_CANDIDATES
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.sources.folder import IMAGE_SUFFIXES
from edje_qdrant.sources.image_folder import ImageFolder
from edje_qdrant.sources.open import open_source
from edje_qdrant.types import FailedImage

__all__ = ["ImageTools", "Picture"]

_DECODERS = 2
_FAILURES_SHOWN = 20
# Words whose heat is shown; below, the image says nothing about the word.
_TELLING = 0.05


@dataclass(frozen=True, slots=True)
class Picture:
    """A JPEG file that goes with a result.

    Attributes:
        label: What it shows, for the reader.
        data: The file's bytes; None if the image cannot be shown.
    """

    label: str
    data: bytes | None = field(repr=False)


class ImageTools:
    """Search, rank, explain and show the images of one collection; not thread-safe.

    Args:
        retriever: Answers the searches; `close` closes it.
        images: Folder of image files; only images of the collection in this folder are shown.
        ingest: Folders whose images may be added; none make the collection read-only.
        whole_paths: Whether results have paths as stored, or as seen from `images`.

    Raises:
        ConfigError: A folder is missing.
    """

    def __init__(
        self,
        retriever: TwoStageRetriever,
        *,
        images: Path | None = None,
        ingest: Sequence[Path] = (),
        whole_paths: bool = True,
    ) -> None:
        for option, folder in (("--images", images), *(("--ingest-from", each) for each in ingest)):
            if folder is not None and kind_of(folder, ConfigError) != "folder":
                raise ConfigError(f"{option} {folder} is not a folder; give a folder of images")
        self.retriever = retriever
        self.ingest_folders = tuple(os.path.realpath(folder) for folder in ingest)
        self._decoders = DecoderPool(_DECODERS)
        self._folder = ImageFolder(images, self._decoders)
        self._shows = images is not None
        self._whole_paths = whole_paths

    def close(self) -> None:
        """Close the collection."""
        self._decoders.close()
        self.retriever.close()

    def search(
        self,
        query: str,
        *,
        top_k: int,
        num_candidates: int,
        filter: Mapping[str, Any] | None,
        min_score: float | Literal["auto"] | None,
        fields: Sequence[str],
        hybrid: bool = False,
    ) -> FoundImages:
        """Find images by a text; arguments as for `TwoStageRetriever.search`."""
        result = self.retriever.search(
            query,
            top_k=top_k,
            num_candidates=max(top_k, num_candidates),
            filter=filter or None,
            min_score=min_score,
            hybrid=hybrid,
        )
        return self._found(result, fields)

    def similar(
        self,
        image_ids: Sequence[str],
        *,
        unlike: Sequence[str],
        query: str | None,
        top_k: int,
        filter: Mapping[str, Any] | None,
        fields: Sequence[str],
    ) -> FoundImages:
        """Find images like some of the collection; arguments as for `recommend`."""
        result = self.retriever.recommend(
            image_ids,
            unlike,
            text=query,
            top_k=top_k,
            num_candidates=max(top_k, NUM_CANDIDATES),
            filter=filter or None,
        )
        return self._found(result, fields)

    def rerank(self, query: str, image_ids: Sequence[str], *, top_k: int | None) -> RankedImages:
        """Rank given images by a text."""
        ranked = rank_images(self.retriever, query, image_ids, top_k)
        payloads = self._payloads([image_ids[row] for row, _ in ranked])
        (cut,) = self.retriever.model.cut_texts([query])
        images = [
            RankedImage(
                rank=rank,
                index=row,
                image_id=image_ids[row],
                path=self._path(payloads.get(image_ids[row], {})),
                score=score,
                probability=self._probability(score, query),
                match=match_word(self._probability(score, query)),
            )
            for rank, (row, score) in enumerate(ranked, start=1)
        ]
        return RankedImages(images=images, truncated=cut is not None, reason=cut)

    def explain(self, query: str, image_id: str) -> tuple[ExplainedMatch, Image.Image, Explanation]:
        """Explain a match; return the image and the explanation too, to draw its heat."""
        payload = self._payload(image_id)
        if not self._shows:
            raise ConfigError(
                "matches are explained from the image's file, and this server shows none; start it "
                "with --images FOLDER"
            )
        decoded = self._folder.decode(payload)
        if decoded is None:
            raise self._not_shown(image_id)
        if decoded.image_id != image_id:
            raise ImageReadError(image_id, "its file contains another image now; ingest it again")
        image = Image.fromarray(decoded.array)
        found = explain_match(self.retriever.model, query, image)
        rows = zip(found.words, found.word_weights, found.word_heat, strict=True)
        match = ExplainedMatch(
            image_id=image_id,
            path=self._path(payload),
            score=found.score,
            probability=self._probability(found.score, query),
            match=match_word(self._probability(found.score, query)),
            words=[_word(word, float(weight), heat, found.area) for word, weight, heat in rows],
        )
        return match, image, found

    def heat(self, image: Image.Image, explanation: Explanation, side: int) -> bytes:
        """Return a small JPEG file of an image, over it the heat of a match."""
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        draw_heat(small, explanation).save(out, "JPEG", quality=85)
        return out.getvalue()

    def thumbnail(self, image_id: str, side: int) -> tuple[ThumbnailOf, bytes]:
        """Return a small JPEG file of an image."""
        payload = self._payload(image_id)
        data = self._folder.thumbnail(payload, side, "JPEG")
        if data is None:
            raise self._not_shown(image_id)
        return ThumbnailOf(image_id=image_id, path=self._path(payload), nbytes=len(data)), data

    def thumbnails(self, image_ids: Sequence[str], side: int) -> Iterator[Picture]:
        """Yield a picture for each image; one without data where it cannot be shown."""
        payloads = self._payloads(image_ids)
        for rank, image_id in enumerate(image_ids, start=1):
            data = self._folder.thumbnail(payloads.get(image_id, {}), side, "JPEG")
            missing = "" if data is not None else " cannot be shown"
            yield Picture(f"{rank}. {image_id}{missing}", data)

    def info(self) -> CollectionSummary:
        """Describe the collection and what the tools can do."""
        collection, model = self.retriever.collection, self.retriever.model
        return CollectionSummary(
            name=collection.name,
            images=collection.count(),
            model=model.name_or_path,
            calibrated=model.calibration is not None,
            precision=self.retriever.precision,
            payload_indexes=collection.payload_indexes(),
            thumbnails=self._shows,
            explains=self._shows and can_explain(model),
            ingest_folders=[*self.ingest_folders],
        )

    def ingest(self, path: str) -> Ingested:
        """Add the images of a file or folder in one of the allowed folders."""
        real = os.path.realpath(os.path.expanduser(path))
        if not self._allowed(real):
            raise ConfigError(
                f"{path} is not in a folder whose images may be added; these are "
                f"{', '.join(self.ingest_folders)}"
            )
        kind = kind_of(Path(real), ConfigError)
        if kind is None:
            raise ConfigError(f"there is nothing at {real}; give a folder or an image file")
        if kind != "folder" and Path(real).suffix.lower() not in IMAGE_SUFFIXES:
            raise ConfigError(f"{real} is no image file; give a folder or an image file")
        paths: list[str] = []
        failed: list[FailedImage] = []
        for item in open_source(real).images():
            if isinstance(item, FailedImage):
                failed.append(item)
            elif self._allowed(os.path.realpath(item.path)):
                paths.append(item.path)
            else:
                failed.append(FailedImage(item.path, "a link that leads out of the folder"))
        report = ingest_images(
            paths, self.retriever.collection, self.retriever.model, progress=False, wait=0
        )
        failed += report.failed
        return Ingested(
            added=report.added,
            skipped=report.skipped + report.updated,
            failed=len(failed),
            failures=[
                FailedFile(path=each.path, reason=each.reason) for each in failed[:_FAILURES_SHOWN]
            ],
            seconds=round(report.seconds, 3),
        )

    def _allowed(self, real: str) -> bool:
        for folder in self.ingest_folders:
            try:
                if os.path.commonpath([real, folder]) == folder:
                    return True
            except ValueError:  # noqa: PERF203 - on another drive
                continue
        return False

    def _found(self, result: SearchResult, fields: Sequence[str]) -> FoundImages:
        images = [
            FoundImage(
                rank=hit.rank,
                image_id=hit.image_id,
                path=self._path(hit.payload),
                score=hit.score,
                probability=hit.probability,
                match=hit.match,
                retrieval_score=hit.retrieval_score,
                retrieval_rank=hit.retrieval_rank,
                fields={name: hit.payload[name] for name in fields if name in hit.payload},
            )
            for hit in result.hits
        ]
        return FoundImages(
            images=images,
            candidates=result.candidates,
            scored=result.scored,
            degraded=result.degraded,
            truncated=result.truncated,
            reason=result.reason,
        )

    def _path(self, payload: Mapping[str, Any]) -> str | None:
        shown = payload if self._whole_paths else self._folder.shown(payload)
        path = shown.get("path")
        return path if isinstance(path, str) else None

    def _probability(self, score: float, text: str) -> float | None:
        calibration = self.retriever.model.calibration
        if calibration is None or not calibration.covers(text):
            return None
        return float(calibration.probability(score))

    def _payloads(self, image_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        found = self.retriever.collection.index.retrieve([*dict.fromkeys(image_ids)], tokens=False)
        return {image_id: user_payload(payload) for image_id, payload in found.items()}

    def _payload(self, image_id: str) -> dict[str, Any]:
        found = self._payloads([image_id])
        if image_id not in found:
            raise ConfigError(
                f"image {image_id} is not in the collection; give an image_id of a search's result"
            )
        return found[image_id]

    def _not_shown(self, image_id: str) -> ImageReadError:
        if not self._shows:
            reason = "this server shows no image files; start it with --images FOLDER"
        else:
            reason = "its file is missing, unreadable, or not in the folder of --images"
        return ImageReadError(image_id, reason)


def _word(
    word: str, weight: float, heat: Any, area: tuple[float, float, float, float]
) -> ExplainedWord:
    """Return a word with the place where it is seen most, as shares of the image."""
    x = y = None
    if weight >= _TELLING and heat.max() > 0:
        rows, columns = heat.shape
        row, column = divmod(int(np.argmax(heat)), columns)
        left, top, right, bottom = area
        x = round(min(1.0, max(0.0, left + (column + 0.5) / columns * (right - left))), 3)
        y = round(min(1.0, max(0.0, top + (row + 0.5) / rows * (bottom - top))), 3)
    return ExplainedWord(word=word, weight=weight, x=x, y=y)
