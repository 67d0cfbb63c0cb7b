"""Several at once: two that want to write, and many that read while one writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from index_stand_in import StandIn
from numpy.typing import NDArray
from proof_world import (
    NUM_TOKENS,
    QUERIES,
    TOKEN_DIM,
    codec_of,
    model,
    opened,
    searched,
    state_of,
)

import edje_qdrant.collection.collection as collection_module
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import reference_of
from edje_qdrant.errors import (
    CollectionLockedError,
    CollectionNotFoundError,
    EngineUnavailableError,
    StoreError,
    TokensNotFoundError,
)
from edje_qdrant.index import QdrantOptions
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.maintenance import compact, export_collection, transcode, verify
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.types import ImageEncoding

PATIENCE = 120.0


def wait_for(path: Path) -> None:
    """Wait until another process has made a file."""
    until = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < until, f"{path.name} never came"
        time.sleep(0.005)


def ids_of(n: int, start: int = 0) -> list[str]:
    return [str(uuid.UUID(int=start + i + 1)) for i in range(n)]


def encoding_of(ids: list[str]) -> ImageEncoding:
    """Make an encoding that any process can make again from the ids."""
    rngs = [np.random.default_rng(uuid.UUID(image_id).int) for image_id in ids]
    embeddings = np.array([r.standard_normal(24) for r in rngs], np.float32).reshape(-1, 24)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    tokens = np.array([r.standard_normal((NUM_TOKENS, TOKEN_DIM)) for r in rngs], np.float16)
    return ImageEncoding(embeddings, tokens.reshape(-1, NUM_TOKENS, TOKEN_DIM))


def hold(pipe: int, folder: str, meet: str) -> int:
    """Write to a side file, let another try, go on writing; return how many are read back."""
    ids = ids_of(12)
    tokens = encoding_of(ids).tokens
    with closing(FileTokenStore.create(folder, model().contract())) as store:
        references = store.put(ids[:3], tokens[:3])  # not flushed: the other must not see an end
        (Path(meet) / "holding").touch()
        wait_for(Path(meet) / "tried")
        references += store.put(ids[3:], tokens[3:])
        store.flush()
        assert store.get(ids, references).tobytes() == tokens.tobytes()
    with closing(FileTokenStore.open(folder)) as store:
        assert store.get(ids, references).tobytes() == tokens.tobytes()
        return sum(segment.num_records for segment in store.segments())


def intrude(pipe: int, folder: str, meet: str) -> list[str]:
    """Try everything that writes while another process does; return what was said."""
    wait_for(Path(meet) / "holding")
    said = []
    contract = model().contract()
    with closing(FileTokenStore.open(folder)) as store:
        for attempt in (
            lambda: store.put(ids_of(1), encoding_of(ids_of(1)).tokens),
            lambda: store.begin_segment(),
            lambda: store.begin_segment(codec_of("int8")),
            lambda: store.drop_segments({"00000000"}),
            lambda: FileTokenStore.rebuild(folder, contract, store.store_id),
            lambda: FileTokenStore.create(folder, contract),
        ):
            try:
                attempt()  # type: ignore[no-untyped-call]
                said.append("nothing")
            except CollectionLockedError as error:  # noqa: PERF203
                said.append(str(error))
    (Path(meet) / "tried").touch()
    return said


def hold_collection(pipe: int, folder: str, pictures: list[str], meet: str) -> dict[str, Any]:
    """Ingest, let another process try, go on; return the collection's state."""
    with opened(folder) as collection:
        ingest_images(pictures[:5], collection, model(), batch_size=4, progress=False)
        (Path(meet) / "holding").touch()
        wait_for(Path(meet) / "tried")
        ingest_images(pictures, collection, model(), batch_size=4, progress=False)
        return state_of(collection)


def intrude_on_collection(pipe: int, folder: str, meet: str) -> str:
    """Try to open a collection that another process has open; return what was said."""
    wait_for(Path(meet) / "holding")
    try:
        ImageCollection.open(folder, "images")
        return "nothing"
    except CollectionLockedError as error:
        return str(error)
    finally:
        (Path(meet) / "tried").touch()


def hold_for_ever(pipe: int, folder: str, meet: str) -> None:
    """Have a collection and its side file open for writing, and say so."""
    collection = opened(folder)
    collection.add(ids_of(3), encoding_of(ids_of(3)), [{}, {}, {}])
    collection.flush()
    (Path(meet) / "pid").write_text(str(os.getpid()))
    (Path(meet) / "holding").touch()
    time.sleep(PATIENCE)


def kill_and_write(pipe: int, folder: str, meet: str) -> None:
    """Kill the process that has a collection open, and write to it at once."""
    wait_for(Path(meet) / "holding")
    try:
        opened(folder)
        raise AssertionError("two had it open")
    except CollectionLockedError:
        os.kill(int((Path(meet) / "pid").read_text()), signal.SIGKILL)
    until = time.monotonic() + PATIENCE
    while True:  # the lock goes with the process, which takes its time
        try:
            collection = opened(folder)
            break
        except CollectionLockedError:
            assert time.monotonic() < until
            time.sleep(0.01)
    with collection:
        collection.add(ids_of(3, 3), encoding_of(ids_of(3, 3)), [{}, {}, {}])
        tokens = collection.encodings(ids_of(6)).tokens
        assert tokens.tobytes() == encoding_of(ids_of(6)).tokens.tobytes()
        assert verify(collection).clean


def write_on(pipe: int, folder: str, meet: str, book: str, rounds: int, readers: int) -> int:
    """Add, delete, compact and change codecs, and hand references out after each step.

    It waits until each reader has read once.
    """
    store_folder = Path(folder) / "images" / "tokens"
    pq = codec_of(book)
    handed = 0

    def hand_out(collection: ImageCollection) -> None:
        nonlocal handed
        points = [p for page in collection.index.scroll() for p in page]
        data = [[point.id, dict(reference_of(point.payload))] for point in points]
        fresh = Path(meet) / "new"
        fresh.write_text(json.dumps(data))
        fresh.rename(Path(meet) / f"references-{handed}")
        handed += 1

    try:
        with opened(folder) as collection:
            (Path(meet) / "store").symlink_to(store_folder)
            for turn in range(rounds):
                ids = ids_of(10, 10 * turn)
                collection.add(ids, encoding_of(ids), [{} for _ in ids])
                hand_out(collection)
                for number in range(readers):
                    wait_for(Path(meet) / f"reader-{number}")
                collection.delete(ids[::3])
                if turn == rounds // 3:
                    transcode(collection, codec_of("int8"))
                if turn == 2 * rounds // 3:
                    transcode(collection, pq, from_lossy=True)
                compact(collection)
                hand_out(collection)
                time.sleep(0.01)
            assert verify(collection).clean
    finally:
        (Path(meet) / "done").touch()  # or the readers would go on for ever
    return handed


def read_on(pipe: int, meet: str, book: str, seed: int) -> dict[str, int]:
    """Read what the writer hands out, also what it handed out long ago, until it is done.

    Raises:
        AssertionError: Tokens came that are not what the writer wrote.
    """
    random, came = Random(seed), Counter[str]()
    wait_for(Path(meet) / "references-0")
    store: FileTokenStore | None = None
    done = False
    while not done:
        done = (Path(meet) / "done").exists()
        handed = sorted(Path(meet).glob("references-*"), key=lambda p: int(p.name[11:]))
        latest = json.loads(handed[-1].read_text())
        older = json.loads(random.choice(handed).read_text())
        if store is None or random.random() < 0.3:
            if store is not None:
                store.close()
            store = FileTokenStore.open(Path(meet) / "store")
            came["opened"] += 1
        for what, references in (("latest", latest), ("older", older)):
            chosen = random.sample(references, min(len(references), 20))
            ids = [image_id for image_id, _ in chosen]
            try:
                parts = store.codes(ids, [reference for _, reference in chosen])
            except TokensNotFoundError:  # compacted since: one would search again
                came[f"{what}: gone"] += 1
                continue
            came[f"{what}: read"] += 1
            for part in parts:
                rows = [ids[row] for row in part.rows]
                ways = _as_written(encoding_of(rows).tokens, part.codec.key, book)
                for row, found in enumerate(part.codec.decode(part.codes)):
                    assert any(found.tobytes() == way[row].tobytes() for way in ways)
        (Path(meet) / f"reader-{seed}").touch()
    assert store is not None
    store.close()
    return dict(came)


def _as_written(tokens: NDArray[np.float16], key: str, book: str) -> list[NDArray[np.float16]]:
    """What a codec makes of tokens, at once and by way of those that were used before it."""
    ways = [tokens]
    for codec in (codec_of("float16"), codec_of("int8"), codec_of(book)):
        made = [codec.decode(codec.encode(way)) for way in ways]
        if codec.key == key:
            return made
        ways += made
    raise AssertionError(f"{key} was never used")


def search_on(pipe: int, folder: str, scratch: str, rounds: int) -> dict[str, int]:
    """Search in threads while another compacts, exports and changes codecs; count the searches.

    Raises:
        AssertionError: A search raised, or gave a score that no codec gives.
    """
    with opened(folder) as collection:
        everything = collection.count()
        known = [_scores(collection)]
        for name in ("int8", "float16"):
            transcode(collection, codec_of(name), from_lossy=True)
            known.append(_scores(collection))
        assert known[0] != known[1]
        kept = collection.encodings(ids := sorted(known[0][0]))
        payloads = [{**collection.index.retrieve([i])[i]} for i in ids]
        for payload in payloads:
            del payload["_edje"]
        retriever = TwoStageRetriever(collection, model(), reranker=Reranker(model(), batch_size=1))
        problems: list[BaseException] = []
        counts: Counter[str] = Counter()
        allowed: list[list[dict[str, str]]] = known[:]
        over = threading.Event()

        def search() -> None:
            try:
                while not over.is_set():
                    before = allowed
                    results = retriever.search_batch(
                        QUERIES, top_k=everything, num_candidates=everything
                    )
                    for number, result in enumerate(results):
                        assert len(result) == everything
                        scores = [hit.score for hit in result]
                        assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
                        for hit in result:
                            assert hit.score is not None
                            ways = {state[number][hit.image_id] for state in (*before, *allowed)}
                            assert hit.score.hex() in ways, "another score"
                    counts["searches"] += 1
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=search) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(rounds):
                # Written over with the very same, so that all old records are holes.
                collection.add(ids, kept, payloads)
                collection.flush()
                for change in (
                    lambda: compact(collection),
                    lambda: transcode(collection, codec_of("int8")),
                    lambda turn=turn: export_collection(collection, f"{scratch}/{turn}"),
                    lambda: transcode(collection, codec_of("float16"), from_lossy=True),
                ):
                    change()
                    counts["changes"] += 1
        finally:
            over.set()
            for thread in threads:
                thread.join()
        if problems:
            raise AssertionError(f"a search failed: {problems[0]!r}") from problems[0]
        state = state_of(collection)
        assert not state["findings"]
    return dict(counts)


def _scores(collection: ImageCollection) -> list[dict[str, str]]:
    return [
        {hit.image_id: hit.score.hex() for hit in result if hit.score is not None}
        for result in searched(collection)
    ]


class Late(StandIn):
    """A server that does what it is told, but from some request on answers too late."""

    late_from: int | None = None

    def __init__(self) -> None:
        super().__init__()
        # Who waited in vain has hung up: nothing to print.
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]

    def answer(self, method: str, path: list[str], body: dict[str, Any]) -> Any:
        result = super().answer(method, path, body)
        if self.late_from is not None and len(self.seen) > self.late_from:
            time.sleep(1.5)
        return result


def server_goes(
    pipe: int, scratch: str, pictures: list[str], tokens: str, how: str, cases: int, seed: int
) -> dict[str, Any]:
    """Ingest into a server that hangs up, or is late, from some request on; run it again.

    Returns:
        How many requests an undisturbed run takes, what was said, and the states after each case,
        that of the undisturbed run first.
    """
    # Fewer tries and no pauses: the server will not come back before it is told to.
    collection_module.QdrantOptions = partial(  # type: ignore[assignment,misc]
        QdrantOptions, retries=1, backoff=0.0
    )
    random = Random(seed)
    with Late() as server:
        _ingest(server, f"{scratch}/undisturbed", pictures, tokens, [])
        requests = len(server.seen)
        states = [_state(server)]
    said = []
    for number in range(cases):
        left = int((number + random.random()) * requests / cases)
        side = f"{scratch}/{number}"
        acknowledged: list[str] = []
        with Late() as server:
            if how == "hangs up":
                server.answers_left = left
            else:
                server.late_from = left
            try:
                _ingest(server, side, pictures, tokens, acknowledged, timeout=1)
                said.append("nothing")
            except EngineUnavailableError as error:
                said.append(str(error))
            server.answers_left = server.late_from = None
            if acknowledged:
                with ImageCollection.open(server.url, "images") as collection:
                    assert collection.existing(acknowledged) == set(acknowledged)
                    assert verify(collection).clean
            try:
                _ingest_after_all(server, side, pictures, tokens)
            except Exception as error:
                raise AssertionError(f"{how} after {left} requests: {error!r}") from error
            states.append(_state(server))
    return {"requests": requests, "said": said, "states": states}


def _ingest(
    server: Late,
    side: str,
    pictures: list[str],
    tokens: str,
    acknowledged: list[str],
    *,
    timeout: int = 60,
) -> None:
    try:
        collection = ImageCollection.open(server.url, "images", timeout=timeout)
    except CollectionNotFoundError:
        collection = ImageCollection.create(
            server.url,
            "images",
            model().contract(),
            tokens=tokens,  # type: ignore[arg-type]
            tokens_folder=side if tokens == "file" else None,
            timeout=timeout,
        )
    add = collection.add_new

    def noted(image_ids: Sequence[str], *more: Any) -> set[str]:
        written = add(image_ids, *more)
        acknowledged.extend(image_ids)
        return written

    collection.add_new = noted  # type: ignore[method-assign]
    with collection:
        ingest_images(pictures, collection, model(), batch_size=2, progress=False, wait=0)


def _ingest_after_all(server: Late, side: str, pictures: list[str], tokens: str) -> None:
    try:
        _ingest(server, side, pictures, tokens, [])
    except StoreError as error:
        # The server went away while the collection was made, and did not make it: an empty side
        # file is left. Do as one is told.
        if "or remove that folder if there is none" not in str(error):
            raise
        shutil.rmtree(Path(side) / "images")
        _ingest(server, side, pictures, tokens, [])


def _state(server: Late) -> dict[str, Any]:
    with ImageCollection.open(server.url, "images") as collection:
        state = state_of(collection)
    # The client that stands in adds cosines up in an order that depends on that of the points.
    state["rankings"] = [
        [[image_id, score, round(float.fromhex(cosine), 5)] for image_id, score, cosine in ranking]
        for ranking in state["rankings"]
    ]
    return state
