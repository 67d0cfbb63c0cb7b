"""Resumable scoring of the pairs of an image-text data set, to select matching captions."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from edje_qdrant.checks import check_kind, check_number
from edje_qdrant.encoders.weights import hash_weights
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import ignore_decoder_warnings
from edje_qdrant.ingest.encode import encode_batch
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.inference.precision import Precision
from edje_qdrant.model.queries import encode_all, read_pixels
from edje_qdrant.pair_scoring.keep_top import keep_top
from edje_qdrant.pair_scoring.score_file import (
    Pair,
    ScoredPair,
    ScoreFile,
    chunked,
    read_pairs,
    survey,
)
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.text import clean_caption
from edje_qdrant.threads import batches, in_threads
from edje_qdrant.types import FailedImage, ImageEncoding

__all__ = ["PairReport", "score_pairs_file"]

# Pairs between two writes; only pairs of one such chunk are encoded and scored together.
_PAIRS = 256
_FAILURES = 20


@dataclass(frozen=True, slots=True)
class PairReport:
    """Summarise a run of pair scoring, including its earlier interrupted parts.

    Attributes:
        pairs: Number of pairs in the input.
        scored: Number of pairs with a score; the others have an error.
        kept: Number of pairs kept by the threshold or the share; None if neither was given.
        threshold: The given threshold, or the lowest score kept for a share; None if neither.
        resumed: Number of pairs scored by earlier parts of the run.
        seconds: Wall-clock time of this part.
        out: The file with the scores.
        kept_out: The file with `keep` set for a share, if a share was given.
        failures: The first 20 images that could not be scored, with the reasons.
    """

    pairs: int
    scored: int
    kept: int | None
    threshold: float | None
    resumed: int
    seconds: float
    out: Path
    kept_out: Path | None
    failures: tuple[FailedImage, ...]

    @property
    def failed(self) -> int:
        """Return the number of pairs without a score."""
        return self.pairs - self.scored

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "pairs": self.pairs,
            "scored": self.scored,
            "failed": self.failed,
            "kept": self.kept,
            "threshold": self.threshold,
            "resumed": self.resumed,
            "seconds": round(self.seconds, 3),
            "out": str(self.out),
            "kept_out": None if self.kept_out is None else str(self.kept_out),
            "failures": [asdict(failure) for failure in self.failures],
        }


def score_pairs_file(
    pairs: str | Path,
    out: str | Path,
    model: EDJEModel,
    *,
    images: str | Path | None = None,
    threshold: float | None = None,
    keep_top: float | None = None,
    batch_size: int = 32,
    workers: int = 2,
    precision: Precision = "auto",
    progress: bool = True,
) -> PairReport:
    """Score every caption of a file against its image, and mark which pairs to keep.

    The input is a `.jsonl` annotation file: `{"image": path, "caption": text or list of texts}`.
    The output has one JSON line for each pair, in order: `image` (absolute path), `caption`,
    `score` (the joint encoder's logit), `cosine` (of the embeddings), `keep`, and `error` if an
    image could not be read or a caption contains no word; such pairs have no score and are not
    kept.

    The whole input is checked before anything is scored. A run that was interrupted or killed
    continues where it stopped when it is called again, and gives the same result as an
    uninterrupted run; `out.run.json` contains its settings. An image is encoded once for its
    consecutive captions. Memory use does not grow with the input.

    Args:
        pairs: The input.
        out: The output; created or appended to.
        model: Encodes and scores.
        images: Folder for relative image paths; by default the folder of the input.
        threshold: Keep pairs with at least this logit. Without a threshold, `keep` is null.
        keep_top: Keep this share of the pairs with a score, the best ones. They are known only
            when all pairs are scored, so `keep` is set in a second file, `scores.top0.3.jsonl` for
            0.3 of `scores.jsonl`, which is otherwise identical. The scores may exist already, from
            a run without a threshold or with another share.
        batch_size: Images encoded at a time.
        workers: Threads that read and decode in parallel with the encoding.
        precision: Precision of the joint encoder; see `Reranker`. An output is continued in the
            precision it was begun in.
        progress: Show a bar on stderr.

    Raises:
        ConfigError: An argument is invalid, a line of the input is invalid (names file and line),
            or the output file belongs to another run or to none.
        StoreError: The output cannot be written, was changed, or is being written by another
            process.
        CheckpointError: A score is not a number.
    """
    began = time.perf_counter()
    check_kind("pairs", pairs, (str, Path), "the path of a .jsonl file")
    check_kind("out", out, (str, Path), "the path of a file")
    check_kind("model", model, EDJEModel, "an EDJEModel")
    pairs, out = Path(pairs), Path(out)
    _check(pairs, out, threshold, keep_top)
    for name, number in (("batch_size", batch_size), ("workers", workers)):
        check_number(name, number)
    total, digest = survey(read_pairs(pairs, images))
    if not total:
        raise ConfigError(f"{pairs} holds no pairs")
    reranker = Reranker(model, precision=precision)
    identity = _identity(model, reranker)
    header = {"pairs": total, "digest": digest, "threshold": threshold, **identity}
    file = ScoreFile(out, header)
    tally = _Tally()
    scorer = _Scorer(model, reranker, batch_size, threshold)
    resumed, past_written = 0, False
    try:
        with (
            warnings.catch_warnings(),
            tqdm(total=total, desc="scoring", unit=" pairs", disable=not progress) as bar,
            ThreadPoolExecutor(workers) as pool,
        ):
            ignore_decoder_warnings()
            try:
                for chunk in chunked(read_pairs(pairs, images), _PAIRS):
                    scored = None if past_written else file.written(chunk)
                    if scored is None:
                        past_written = True
                        scored = scorer.score(chunk, pool)
                        file.write(scored)
                    else:
                        resumed += len(scored)
                    tally.add(scored)
                    bar.update(len(chunk))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if not past_written:
            file.require_end()
        kept, kept_out = (None if threshold is None else tally.kept), None
        if keep_top is not None:
            kept_out = out.with_name(f"{out.stem}.top{keep_top:g}{out.suffix}")
            kept, threshold = _keep_top(out, kept_out, keep_top, total, progress)
    finally:
        file.close()
    seconds = time.perf_counter() - began
    failures = tuple(FailedImage(path, reason) for path, reason in tally.failures.items())
    return PairReport(
        total, tally.scored, kept, threshold, resumed, seconds, out, kept_out, failures
    )


class _Tally:
    """Count scored, kept and failed pairs."""

    def __init__(self) -> None:
        self.scored = self.kept = 0
        self.failures: dict[str, str] = {}

    def add(self, pairs: Sequence[ScoredPair]) -> None:
        for pair in pairs:
            self.scored += pair.score is not None
            self.kept += pair.keep is True
            if pair.error is not None and len(self.failures) < _FAILURES:
                self.failures.setdefault(pair.image, pair.error)


class _Scorer:
    """Score chunks of pairs; the scores of a chunk are independent of other chunks."""

    def __init__(
        self, model: EDJEModel, reranker: Reranker, batch_size: int, threshold: float | None
    ) -> None:
        self._model = model
        self._reranker = reranker
        self._batch_size = batch_size
        self._threshold = threshold

    def score(self, chunk: Sequence[Pair], pool: ThreadPoolExecutor) -> list[ScoredPair]:
        rows, errors, images = self._encoded([*dict.fromkeys(p.image for p in chunk)], pool)
        scorable = []
        for place, pair in enumerate(chunk):
            if pair.image in rows and clean_caption(pair.caption):
                scorable.append(place)
        texts = [chunk[place].caption for place in scorable]
        asked = np.array([rows[chunk[place].image] for place in scorable], np.intp)
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        vectors = encode_all(self._model, [*distinct])[[distinct[text] for text in texts]]
        cosines = (vectors * images.embeddings[asked]).sum(axis=1)
        logits = self._reranker.score_pairs(texts, images.tokens[asked])
        found = dict(zip(scorable, zip(_plain(logits), _plain(cosines), strict=True), strict=True))
        return [self._line(pair, found.get(place), errors) for place, pair in enumerate(chunk)]

    def _line(
        self, pair: Pair, found: tuple[float, float] | None, errors: dict[str, str]
    ) -> ScoredPair:
        keep = None if self._threshold is None else bool(found and found[0] >= self._threshold)
        if found is not None:
            return ScoredPair(pair.image, pair.caption, *found, keep, None)
        error = errors.get(pair.image, "the caption has no word in it")
        return ScoredPair(pair.image, pair.caption, None, None, keep, error)

    def _encoded(
        self, paths: Sequence[str], pool: ThreadPoolExecutor
    ) -> tuple[dict[str, int], dict[str, str], ImageEncoding]:
        """Return path -> row of readable images, path -> error of the others, and the encodings."""
        errors: dict[str, str] = {}
        rows: dict[str, int] = {}
        c = self._model.config
        embeddings = [np.empty((0, c.embedding_dim), np.float32)]
        tokens = [np.empty((0, c.num_tokens, c.token_dim), np.float16)]

        def readable() -> Any:
            for path, read in in_threads(pool, self._read, paths, 2 * self._batch_size):
                if isinstance(read, str):
                    errors[path] = read
                else:
                    rows[path] = len(rows)
                    yield read

        for batch in batches(readable(), self._batch_size):
            encoding = encode_batch(self._model, batch)
            embeddings.append(encoding.embeddings)
            tokens.append(encoding.tokens)
        return rows, errors, ImageEncoding(np.concatenate(embeddings), np.concatenate(tokens))

    def _read(self, path: str) -> tuple[str, Tensor | str]:
        try:
            return path, read_pixels(self._model, path)
        except ImageReadError as error:
            return path, error.reason


def _plain(numbers: NDArray[np.float32]) -> list[float]:
    """Return float32 numbers as the shortest decimals that round to them."""
    return [float(str(number)) for number in numbers]


def _keep_top(
    out: Path, kept: Path, share: float, total: int, progress: bool
) -> tuple[int, float | None]:
    with tqdm(total=total, desc="keeping", unit=" pairs", disable=not progress) as bar:
        return keep_top(out, kept, share, bar.update)


def _identity(model: EDJEModel, reranker: Reranker) -> dict[str, Any]:
    """Return the properties of a model and its reranker that determine the scores."""
    contract = model.contract()
    return {
        "encoder": contract.encoder,
        "encoder_revision": contract.encoder_revision,
        "preprocessing": contract.preprocessing,
        "adapter_hash": contract.adapter_hash,
        "joint_encoder": hash_weights(model.joint_encoder.state_dict()),
        "dtype": reranker.precision,
    }


def _check(pairs: Path, out: Path, threshold: float | None, keep_top: float | None) -> None:
    if threshold is not None and keep_top is not None:
        raise ConfigError("give a threshold or a share to keep, not both")
    if threshold is not None and not math.isfinite(threshold):
        raise ConfigError(f"threshold is {threshold}; give a number")
    if keep_top is not None and not 0 < keep_top <= 1:
        raise ConfigError(
            f"keep_top is {keep_top}; give a share of the pairs above 0 and at most 1, such as 0.3"
        )
    if out.absolute() == pairs.absolute():
        raise ConfigError(f"the output would overwrite the input {out}; choose another file")
