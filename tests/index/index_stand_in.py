"""A small HTTP server that answers Qdrant's REST requests as recorded from real servers.

The data is in a client in memory, or in a folder. `test_stand_in.py` replays every recorded
exchange.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from qdrant_client import QdrantClient, models
from server_filters import (
    all_conditions,
    listed_values,
    needed_indexes,
    server_matches,
    unread_words,
)

_DEFAULT_HNSW = {
    "m": 16,
    "ef_construct": 100,
    "full_scan_threshold": 10_000,
    "max_indexing_threads": 0,
    "on_disk": False,
}
_DEFAULT_OPTIMIZER = {
    "deleted_threshold": 0.2,
    "vacuum_min_vector_number": 1000,
    "default_segment_number": 0,
    "max_segment_size": None,
    "memmap_threshold": None,
    "indexing_threshold": 10_000,
    "flush_interval_sec": 5,
    "max_optimization_threads": None,
    "prevent_unoptimized": None,
}
_WAL = {"wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1}
_AWAY = (
    "Service internal error: Tonic status error: code: 'The service is currently unavailable', "
    'message: "tcp connect error", source: tonic::transport::Error(Transport, ConnectError('
    'ConnectError("tcp connect error", 127.0.0.1:8695, Os { code: 111, kind: ConnectionRefused, '
    'message: "Connection refused" })))'
)


class RefusalError(Exception):
    """An answer other than 200: its status, what it says, and its headers."""

    def __init__(
        self,
        status: int,
        says: str,
        headers: Mapping[str, str] | None = None,
        *,
        plain: bool = False,
    ) -> None:
        super().__init__(says)
        self.status, self.says, self.headers, self.plain = status, says, headers or {}, plain


class StandIn:
    """Answer at `url`; answer with the statuses queued in `failures` first.

    Attributes:
        url: Where it listens.
        client: What keeps the data.
        version: The server's version, which decides about filters.
        hides_version: Whether what stands before the server lets nothing ask for the version.
        keys: Keys that requests must bring one of, and whether a key may write; None for no check.
        node_away: Whether a node of the cluster cannot be reached, so that requests fail.
        no_quorum: Whether a cluster cannot agree, so that no collection is created.
        failures: Statuses (with headers) to answer with, before anything else.
        seen: Method and path of every request.
        params: How each search was to be done.
        modes: The `update_mode` of every upsert.
        created: Collection -> what was asked for when it was made.
        indexed: Collection -> field -> the payload index asked for.
        answers_left: How many more requests to answer before hanging up on every one; None for all.
        delay: Seconds that each answer takes.
    """

    def __init__(
        self,
        version: str = "1.19.0",
        keys: Mapping[str, bool] | None = None,
        *,
        port: int = 0,
        folder: str | None = None,
    ) -> None:
        if folder is None:
            self.client = QdrantClient(":memory:")
        else:
            self.client = QdrantClient(path=folder, force_disable_check_same_thread=True)
        self.version = version
        self.keys = keys
        self.hides_version = False
        self.node_away = False
        self.no_quorum = False
        self.failures: deque[tuple[int, dict[str, str]]] = deque()
        self.seen: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.params: list[models.SearchParams] = []
        self.modes: list[models.UpdateMode | None] = []
        self.created: dict[str, dict[str, Any]] = {}
        self.indexed: dict[str, dict[str, Any]] = {}
        self.answers_left: int | None = None
        self.delay = 0.0
        self._ended = threading.Event()
        self._aliases: dict[str, str] = {}
        self._strict: dict[str, dict[str, Any]] = {}
        self._reads: dict[str, int] = defaultdict(int)
        self._operations: dict[str, int] = defaultdict(int)
        self._written: dict[str, dict[Any, int]] = defaultdict(dict)
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = json.loads(text) if text else {}
                url = urlsplit(self.path)
                outer.seen.append(f"{self.command} {url.path}")
                headers = {k.lower(): v for k, v in self.headers.items()}
                outer.headers.append(headers)
                if outer._ended.wait(outer.delay):  # tests replace time.sleep
                    return None
                if outer.answers_left is not None:
                    if outer.answers_left == 0:
                        self.close_connection = True
                        return None
                    outer.answers_left -= 1
                if outer.failures:
                    status, more = outer.failures.popleft()
                    return self.reply(status, {"status": {"error": "told to fail"}}, more)
                path = url.path.strip("/").split("/")
                limits = {key: values[0] for key, values in parse_qs(url.query).items()}
                try:
                    result = outer.respond(
                        self.command, path, body, limits, headers.get("api-key"), len(text)
                    )
                except RefusalError as refusal:
                    says: Any = {"status": {"error": refusal.says}}
                    return self.reply(
                        refusal.status, refusal.says if refusal.plain else says, refusal.headers
                    )
                if path == [""]:
                    return self.reply(200, result)
                return self.reply(200, {"result": result, "status": "ok", "time": 0.0})

            def reply(
                self, status: int, data: Any, headers: Mapping[str, str] | None = None
            ) -> None:
                plain = isinstance(data, str)
                text = data.encode() if plain else json.dumps(data).encode()
                self.send_response(status)
                if not plain:
                    self.send_header("Content-Type", "application/json")
                for key, value in {**(headers or {}), "Content-Length": str(len(text))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> StandIn:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.client.close()

    def respond(
        self,
        method: str,
        path: list[str],
        body: Any,
        limits: Mapping[str, str],
        key: str | None,
        size: int = 0,
    ) -> Any:
        """Answer a request, however it came.

        Args:
            method: GET, PUT ...
            path: The path's parts.
            body: The request as JSON.
            limits: What follows the path's question mark.
            key: The API key that came with it.
            size: Bytes of the body.

        Raises:
            RefusalError: The answer is an error.
        """
        with self._lock:
            self.admit(method, path, key)
            path = self.resolved(path)
            self.check(method, path, body, limits, size)
            try:
                return self.answer(method, path, body)
            except ValueError as error:
                status = 404 if "not found" in str(error) else 400
                raise RefusalError(status, f"Wrong input: {error}") from error

    # Whether to answer at all.

    def admit(self, method: str, path: list[str], key: str | None) -> None:
        """Refuse a request that brings no key, or one that may not write."""
        if path == [""] and self.hides_version:
            raise RefusalError(403, "Forbidden", plain=True)
        if self.keys is None or path == [""]:
            return
        if key is None:
            says = "Must provide an API key or an Authorization bearer token"
            raise RefusalError(401, says, plain=True)
        if key not in self.keys:
            raise RefusalError(401, "Invalid API key or JWT", plain=True)
        if not self.keys[key] and (method in ("PUT", "PATCH", "DELETE") or _writes(method, path)):
            raise RefusalError(403, "Forbidden: Global manage access is required")

    def resolved(self, path: list[str]) -> list[str]:
        """Put a collection's name in the place of its alias."""
        if path[0] == "collections" and len(path) > 1:
            path[1] = self._aliases.get(path[1], path[1])
        return path

    def check(
        self, method: str, path: list[str], body: Any, limits: Mapping[str, str], size: int
    ) -> None:
        """Refuse what a server refuses before it looks at the points."""
        name = path[1] if len(path) > 1 else ""
        if self.no_quorum and (method, *path[2:]) == ("PUT",):
            raise RefusalError(
                500,
                "Service internal error: Waiting for consensus operation commit failed. Timeout "
                "set at: 10 seconds",
            )
        if path[0] != "collections" or name in ("", "aliases"):
            return
        creates = (method, *path[2:]) == ("PUT",)
        if not creates and path[2:] != ["exists"] and not self.client.collection_exists(name):
            raise RefusalError(404, f"Not found: Collection `{name}` doesn't exist!")
        version = tuple(map(int, self.version.split(".")[:2]))
        for chosen in _filters(path, body):
            unread = unread_words(chosen, (version[0], version[1]))
            if unread:
                words = f"Format error in JSON body: {unread} at line 1 column {size}"
                raise RefusalError(400, words)
        if self.node_away and "points" in path:
            many = "1 of 1 read operations failed:\n  "
            if _writes(method, path):
                many = "1 out of 2 shards failed to apply operation. First error captured: "
            raise RefusalError(500, f"Service internal error: {many}{_AWAY}")
        strict = self._strict.get(name, {})
        if strict.get("enabled"):
            self._check_strict(name, method, path, body, limits, strict)

    def _check_strict(
        self,
        name: str,
        method: str,
        path: list[str],
        body: Any,
        limits: Mapping[str, str],
        strict: Mapping[str, Any],
    ) -> None:
        def bound(value: float | None, most: str, called: str) -> None:
            limit = strict.get(most)
            if value is not None and limit is not None and value > limit:
                raise RefusalError(
                    400,
                    f'Bad request: Limit exceeded {value:g} > {limit:g} for "{called}". Help: '
                    f'Reduce the "{called}" parameter to or below {limit:g}.',
                )

        points = "points" in path
        writes = _writes(method, path)
        if points and not writes and strict.get("read_rate_limit") is not None:
            self._reads[name] += 1
            if self._reads[name] > strict["read_rate_limit"]:
                raise RefusalError(
                    429,
                    "Rate limiting exceeded: Read rate limit exceeded: Operation requires 1 tokens "
                    "but only 0.0 were available. Retry after 60s",
                    {"Retry-After": "60"},
                )
        bound(float(limits["timeout"]) if "timeout" in limits else None, "max_timeout", "timeout")
        if points and isinstance(body, dict):
            if (method, path[2:]) == ("PUT", ["points"]):
                bound(len(body.get("points", ())), "upsert_max_batchsize", "upsert limit")
            bound(len(body.get("searches", ())), "search_max_batchsize", "search batch size")
            allowed = strict.get("search_allow_exact") is not False
            for request in _requests(body):
                bound(request.get("limit"), "max_query_limit", "limit")
                params = request.get("params") or {}
                quantization = params.get("quantization") or {}
                bound(quantization.get("oversampling"), "search_max_oversampling", "oversampling")
                bound(params.get("hnsw_ef"), "search_max_hnsw_ef", "hnsw_ef")
                if not allowed and (params.get("exact") or request.get("exact")):
                    says = "Bad request: Exact search disabled!. Help: Set exact=false."
                    raise RefusalError(400, says)
            for chosen in _filters(path, body):
                self._check_filter(name, chosen, strict, writes=writes)

    def _check_filter(
        self, name: str, chosen: models.Filter, strict: Mapping[str, Any], *, writes: bool
    ) -> None:
        groups = (models.Filter, models.NestedCondition)
        single = [each for each in all_conditions(chosen) if not isinstance(each, groups)]
        size = max(map(listed_values, single), default=0)
        for found, limit, called, advice in (
            (len(single), "filter_max_conditions", "Filter condition", "amount of conditions"),
            (size, "condition_max_size", "Condition size", "size"),
        ):
            most = strict.get(limit)
            if most is not None and found > most:
                raise RefusalError(
                    400,
                    f"Bad request: {called} limit reached ({found} > {most}). Help: Reduce the "
                    f"{advice} of your {'filter' if 'amount' in advice else 'condition'}.",
                )
        known = self.indexed.get(name, {})
        free = strict.get(f"unindexed_filtering_{'update' if writes else 'retrieve'}", True)
        for key, kinds in () if free else needed_indexes(chosen):
            if key not in known or known[key]["data_type"] not in kinds:
                raise RefusalError(
                    400,
                    f'Bad request: Index required but not found for "{key}" of one of the '
                    f"following types: [{', '.join(kinds)}]. Help: Create an index for this key or "
                    "use a different filter.",
                )

    # Answers.

    def answer(self, method: str, path: list[str], body: dict[str, Any]) -> Any:
        name = path[1] if len(path) > 1 else ""
        match (method, *path):
            case ("GET", ""):
                commit = "db8fa43fcb6aedec1e739487e17a99731b74590a"
                title = "qdrant - vector search engine"
                return {"title": title, "version": self.version, "commit": commit}
            case ("GET", "aliases"):
                pairs = [
                    {"alias_name": alias, "collection_name": of}
                    for alias, of in self._aliases.items()
                ]
                return {"aliases": pairs}
            case ("GET", "collections", of, "aliases"):
                names = [alias for alias, named in self._aliases.items() if named == of]
                pairs = [{"alias_name": alias, "collection_name": of} for alias in names]
                return {"aliases": pairs}
            case ("POST", "collections", "aliases"):
                for action in body["actions"]:
                    if made := action.get("create_alias"):
                        self._aliases[made["alias_name"]] = made["collection_name"]
                    if gone := action.get("delete_alias"):
                        self._aliases.pop(gone["alias_name"], None)
                return True
        match (method, *path[2:]):
            case ("GET",) if not name:
                return _plain(self.client.get_collections())
            case ("GET", "exists"):
                return {"exists": self.client.collection_exists(name)}
            case ("GET",):
                return self._described(name)
            case ("PUT", "index"):
                # The client's local mode keeps no indexes, so what was asked for is noted here.
                field = models.CreateFieldIndex(**body)
                schema = body["field_schema"]
                known = self.indexed.setdefault(name, {})
                if isinstance(schema, dict):
                    params = {key: value for key, value in schema.items() if value is not None}
                    known[field.field_name] = {"data_type": schema["type"], "params": params}
                else:
                    known[field.field_name] = {"data_type": schema}
                return self._done(name, 2)
            case ("DELETE", "index", field_name):
                self.indexed.get(name, {}).pop(field_name, None)
                return self._done(name)
            case ("PUT", "vectors", vector):
                if self._number() < (1, 18):
                    raise RefusalError(404, "")  # there is no such route
                config: Any = models.SparseVectorNameConfig(**body)
                if vector not in self._sparse(name):
                    self.client.create_vector_name(name, vector, config)
                return self._done(name)
            case ("DELETE", "vectors", vector):
                if self._number() < (1, 18):
                    raise RefusalError(404, "")
                self.client.delete_vector_name(name, vector)
                return self._done(name)
            case ("PUT",):
                if self.client.collection_exists(name):
                    raise RefusalError(409, f"Wrong input: Collection `{name}` already exists!")
                made = models.CreateCollection(**body)
                done = self.client.create_collection(
                    name,
                    vectors_config=made.vectors,
                    **(
                        {"sparse_vectors_config": made.sparse_vectors}
                        if made.sparse_vectors
                        else {}
                    ),
                    metadata=made.metadata,
                )
                self.created[name] = body
                if made.strict_mode_config is not None:
                    self._strict[name] = made.strict_mode_config.model_dump(exclude_none=True)
                return done
            case ("DELETE",):
                for kept in (self.created, self.indexed, self._strict, self._written):
                    kept.pop(name, None)
                return self.client.delete_collection(name)
            case ("PATCH",):
                update = models.UpdateCollection(**body)
                if update.strict_mode_config is not None:
                    given = update.strict_mode_config.model_dump(exclude_none=True)
                    self._strict.setdefault(name, {}).update(given)
                    self._reads.pop(name, None)
                if update.metadata is None:
                    return True
                return self.client.update_collection(name, metadata=update.metadata)
            case ("PUT", "points"):
                given = models.PointsList(**body)
                points = given.points
                self.modes.append(given.update_mode)
                # Older servers ignore it.
                mode = given.update_mode if self._number() >= (1, 17) else None
                self._check_vectors(name, points)
                self.client.upsert(name, points, update_mode=mode)
                result = self._done(name)
                self._written[name].update({p.id: result["operation_id"] for p in points})
                return result
            case ("POST", "points"):
                named = models.PointRequest(**body)
                found = self.client.retrieve(
                    name,
                    named.ids,
                    with_payload=named.with_payload,
                    with_vectors=named.with_vector or False,
                )
                return [_given(record) for record in found]
            case ("POST", "points", "query"):
                return self._searched(name, [models.QueryRequest(**body)])[0]
            case ("POST", "points", "query", "batch"):
                searches = models.QueryRequestBatch(**body).searches
                for search in searches:
                    params = [each.params for each in _prefetched(search)] or [search.params]
                    self.params += [each for each in params if each is not None]
                return self._searched(name, searches)
            case ("POST", "points", "scroll"):
                wanted = models.ScrollRequest(**body)
                records, following = self.client.scroll(
                    name,
                    self._by_id(name, wanted.filter),
                    limit=wanted.limit or 10,
                    offset=wanted.offset,
                    order_by=self._orderable(name, wanted.order_by),
                    with_payload=wanted.with_payload,
                    with_vectors=wanted.with_vector or False,
                )
                points_found = [_given(record) for record in records]
                return {"points": points_found, "next_page_offset": following}
            case ("POST", "points", "batch"):
                operations = models.UpdateOperations(**body).operations
                for operation in operations:
                    if isinstance(operation, models.UpdateVectorsOperation):
                        self._check_vectors(name, operation.update_vectors.points, stored=True)
                self.client.batch_update_points(name, operations)
                return [self._done(name) for _ in operations]
            case ("POST", "points", "payload"):
                setting = models.SetPayload(**body)
                self._operations[name] += 1
                for point_id in setting.points or []:
                    if not self.client.retrieve(name, [point_id]):
                        raise RefusalError(404, f"Not found: No point with id {point_id} found")
                chosen: Any = setting.points or self._by_id(name, setting.filter)
                self.client.set_payload(name, setting.payload, chosen, key=setting.key)
                return {"operation_id": self._operations[name], "status": "completed"}
            case ("POST", "points", "payload", "delete"):
                gone = models.DeletePayload(**body)
                self.client.delete_payload(name, gone.keys, self._by_id(name, gone.filter))
                return self._done(name)
            case ("POST", "points", "delete") if "filter" in body:
                by_id = self._by_id(name, models.FilterSelector(**body).filter)
                self.client.delete(name, models.FilterSelector(filter=by_id))
                return self._done(name)
            case ("POST", "points", "delete"):
                self.client.delete(name, models.PointIdsList(**body))
                return self._done(name)
            case ("POST", "facet"):
                found = self.client.facet(name, body["key"], limit=body.get("limit", 10))
                return _plain(found)
            case ("POST", "points", "count"):
                counted = self._by_id(name, models.CountRequest(**body).filter)
                return _plain(self.client.count(name, counted, exact=True))
        raise ValueError(f"{method} {path} not found")

    def _done(self, name: str, operations: int = 1) -> dict[str, Any]:
        self._operations[name] += operations
        return {"operation_id": self._operations[name], "status": "completed"}

    def _searched(self, name: str, searches: list[models.QueryRequest]) -> list[Any]:
        for search in searches:
            self._check_fusion(search)
            for part in (search, *_prefetched(search)):
                part.params = None  # the client's local mode compares all vectors
                part.filter = self._by_id(name, part.filter)
                self._check_using(name, part)
                self._check_width(name, part.query)
        answers = self.client.query_batch_points(name, searches)
        written = self._written[name]
        return [
            {"points": [{**_given(hit), "version": written.get(hit.id, 0)} for hit in each.points]}
            for each in answers
        ]

    def _number(self) -> tuple[int, ...]:
        return tuple(map(int, self.version.split(".")[:2]))

    def _sparse(self, name: str) -> dict[str, Any]:
        """Return the settings of a collection's sparse vectors, as servers describe them."""
        kept = self.client.get_collection(name).config.params.sparse_vectors or {}
        return {each: _set(_plain(params)) for each, params in kept.items()}

    def _check_vectors(self, name: str, points: list[Any], *, stored: bool = False) -> None:
        """Refuse vectors that the collection does not have, and those of points that are not."""
        known = {"", *self._sparse(name)}
        for point in points:
            given = point.vector if isinstance(point.vector, dict) else {}
            for vector in given.keys() - known:
                says = f"Wrong input: Not existing vector name error: {vector}"
                raise RefusalError(400, says)
            if stored and not self.client.retrieve(name, [point.id]):
                raise RefusalError(404, f"Not found: No point with id {point.id} found")

    def _check_using(self, name: str, part: Any) -> None:
        if part.using is not None and part.using not in self._sparse(name):
            says = f"Wrong input: Not existing vector name error: {part.using}"
            raise RefusalError(400, says)

    def _check_fusion(self, search: models.QueryRequest) -> None:
        """Refuse a fusion by weights where the version does not know them."""
        for part in (search, *_prefetched(search)):
            if isinstance(part.query, models.RrfQuery) and self._number() < (1, 17):
                raise RefusalError(400, "Format error in JSON body: unknown field `weights`")

    def _orderable(self, name: str, order: Any) -> models.OrderBy | None:
        """Refuse an order by a field without an index for ranges, as servers do."""
        if order is not None and order.key not in self.indexed.get(name, {}):
            raise RefusalError(
                400,
                f"Bad request: No range index for `order_by` key: `{order.key}`. Please create "
                "one to use `order_by`. Check https://qdrant.tech/documentation/concepts/indexing/"
                "#payload-index to see which payload schemas support Range conditions",
            )
        return order

    def _check_width(self, name: str, query: Any) -> None:
        params = self.client.get_collection(name).config.params.vectors
        given = getattr(query, "nearest", query)
        if not isinstance(params, models.VectorParams) or not isinstance(given, list):
            return
        if len(given) != params.size:
            raise RefusalError(
                400,
                f"Wrong input: Vector dimension error: expected dim: {params.size}, "
                f"got {len(given)}",
            )

    def _by_id(self, name: str, filter: models.Filter | None) -> models.Filter | None:
        """Name the points that the server finds, as the client in memory finds others."""
        if filter is None:
            return None
        major, minor, *_ = map(int, self.version.split("."))
        kinds = {field: index["data_type"] for field, index in self.indexed.get(name, {}).items()}
        records, _ = self.client.scroll(name, limit=10**9, with_payload=True)
        found = [
            record.id
            for record in records
            if server_matches(filter, record.payload or {}, record.id, kinds, (major, minor))
        ]
        return models.Filter(must=[models.HasIdCondition(has_id=found)])

    def _described(self, name: str) -> dict[str, Any]:
        """Describe a collection; the client's local mode keeps few of the settings."""
        asked = {key: value for key, value in self.created.get(name, {}).items() if value}
        kept = self.client.get_collection(name).config
        vectors: Any = json.loads(kept.params.model_dump_json(exclude_none=True))["vectors"]
        for setting in ("on_disk", "memory"):
            if asked.get("vectors", {}).get(setting) is not None:
                vectors[setting] = asked["vectors"][setting]
        params = {
            "vectors": vectors,
            **({"sparse_vectors": self._sparse(name)} if self._sparse(name) else {}),
            "shard_number": asked.get("shard_number", 1),
            "replication_factor": asked.get("replication_factor", 1),
            "write_consistency_factor": asked.get("write_consistency_factor", 1),
            "on_disk_payload": self.created.get(name, {}).get("on_disk_payload") is not False,
        }
        if asked.get("payload"):
            params["payload"] = asked["payload"]
        config = {
            "params": params,
            "hnsw_config": {**_DEFAULT_HNSW, **_set(asked.get("hnsw_config"))},
            "optimizer_config": {**_DEFAULT_OPTIMIZER, **_set(asked.get("optimizers_config"))},
            "wal_config": _WAL,
            "quantization_config": asked.get("quantization_config"),
        }
        if name in self._strict:
            config["strict_mode_config"] = self._strict[name]
        if kept.metadata:
            config["metadata"] = kept.metadata
        records, _ = self.client.scroll(name, limit=10**9, with_payload=True)
        schema = {
            field: {**index, "points": sum(field in (record.payload or {}) for record in records)}
            for field, index in self.indexed.get(name, {}).items()
        }
        return {
            "status": "green",
            "optimizer_status": "ok",
            "indexed_vectors_count": 0,
            "points_count": len(records),
            "segments_count": 2 * params["shard_number"],
            "config": config,
            "payload_schema": schema,
            "update_queue": {"length": 0},
        }


def _writes(method: str, path: list[str]) -> bool:
    ends = {"batch", "payload", "delete", "vectors"}
    return method in ("PUT", "PATCH", "DELETE") or (
        method == "POST" and bool(ends & {*path[3:]}) and "query" not in path
    )


def _prefetched(search: Any) -> list[models.Prefetch]:
    """Return the prefetches of a search, also those of a prefetch."""
    inner = search.prefetch or []
    inner = inner if isinstance(inner, list) else [inner]
    return [part for each in inner for part in (each, *_prefetched(each))]


def _set(given: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (given or {}).items() if value is not None}


def _requests(body: Any) -> Iterator[Any]:
    """Yield the searches of a request, and their prefetches; or the request itself."""
    for request in body.get("searches", [body]):
        yield request
        inner = request.get("prefetch") or []
        for each in inner if isinstance(inner, list) else [inner]:
            yield from _requests(each)


def _filters(path: list[str], body: Any) -> Iterator[models.Filter]:
    """Yield the filters of a request."""
    if "points" in path and isinstance(body, dict):
        operations = [each for o in body.get("operations", ()) for each in o.values()]
        for request in (body, *_requests(body), *operations):
            if request.get("filter"):
                yield models.Filter(**request["filter"])


def _given(record: Any) -> dict[str, Any]:
    """Return a point as servers write it, without what was not asked for."""
    return {key: value for key, value in _plain(record).items() if value is not None}


def _plain(model: Any) -> Any:
    return json.loads(model.model_dump_json())


if __name__ == "__main__":  # a server in a process of its own, which keeps its data in a folder
    with StandIn(port=int(sys.argv[1]), folder=sys.argv[2]):
        threading.Event().wait()
