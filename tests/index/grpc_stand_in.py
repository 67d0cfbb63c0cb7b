"""A gRPC server that answers Qdrant's requests as its REST stand-in does, from the same data.

Each request is converted to REST's form, given to a `StandIn`, and the answer converted back, so
that strict mode, keys, aliases, versions and filters are written once. What only gRPC does is here:

- a condition that the version does not know is dropped without a word (all points match);
- a match that it does not know is refused with other words than REST's;
- errors have gRPC's codes.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
from index_stand_in import RefusalError, StandIn
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as q
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}

#: Method, path below `/`, body.
Request = tuple[str, list[str], Any]


class GrpcStandIn:
    """Answer over gRPC at `port`, and over REST at `rest.url`, from the same data.

    Attributes:
        rest: The stand-in that has the data, version, keys and strict mode.
        url: Its address over REST.
        port: Where it listens for gRPC.
        failures: Codes, texts and trailing metadata to answer with, before anything else, such as
            `(grpc.StatusCode.UNAVAILABLE, "connection refused", {})`.
        paused: Whether requests wait until it is False again, as those to a stopped server do.
        seen: Method of every request, such as "Points/QueryBatch".
        requests: Every request, as it came.
        metadata: What came with every request: `api-key`, `user-agent` ...
        encodings: What each connection accepts: "identity, deflate, gzip" allows compression.
        bytes_out: Bytes sent on all connections.
    """

    def __init__(
        self,
        version: str = "1.19.0",
        keys: Mapping[str, bool] | None = None,
        *,
        port: int = 0,
        rest_port: int = 0,
        folder: str | None = None,
    ) -> None:
        self.rest = StandIn(version, keys, port=rest_port, folder=folder)
        self.url = self.rest.url
        self.failures: deque[tuple[grpc.StatusCode, str, dict[str, str]]] = deque()
        self.paused = False
        self.seen: list[str] = []
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.encodings: list[str] = []
        self.bytes_out = 0
        self._pool = ThreadPoolExecutor(8)
        unbounded = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._server = grpc.server(self._pool, handlers=[_Methods(self)], options=unbounded)
        self._inner = self._server.add_insecure_port("127.0.0.1:0")
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def client(self, **more: Any) -> QdrantClient:
        """Return a client of this server over gRPC; the caller closes it."""
        given = {"url": self.url, "grpc_port": self.port, "prefer_grpc": True, **more}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a key without TLS
            return QdrantClient(check_compatibility=False, **given)

    def __enter__(self) -> GrpcStandIn:
        self.rest.__enter__()
        self._server.start()
        self._start(self._accept)
        return self

    def __exit__(self, *error: object) -> None:
        self.paused = False
        for each in (self._listener, *self._sockets):
            _hang_up(each)
        self._server.stop(0).wait()
        for thread in self._threads:
            thread.join()
        self._pool.shutdown()
        self.rest.__exit__(*error)

    def answer(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        """Answer one request; `method` such as "Points/Count"."""
        self.seen.append(method)
        self.requests.append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        while self.paused and context.is_active():
            time.sleep(0.01)
        if self.failures:
            code, text, more = self.failures.popleft()
            context.set_trailing_metadata([*more.items()])
            context.abort(code, text)
        into, back = _METHODS[method][1:]
        try:
            request = self._as_read(request)
            limits = {}
            if "timeout" in request.DESCRIPTOR.fields_by_name and request.HasField("timeout"):
                limits["timeout"] = str(request.timeout)
            key = self.metadata[-1].get("api-key")
            return back(self.rest.respond(*into(request), limits, key))
        except RefusalError as refusal:
            headers = {name.lower(): value for name, value in refusal.headers.items()}
            context.set_trailing_metadata([*headers.items()])
            context.abort(_CODES[refusal.status], refusal.says)

    def _as_read(self, request: Any) -> Any:
        """Return the request as this version reads it: without what it does not know."""
        version = tuple(map(int, self.rest.version.split(".")[:2]))
        read = type(request)()
        read.CopyFrom(request)
        _forget_newer(read, version)
        return read

    # Connections pass through a relay, as a server in Python does not see what its peer accepts.

    def _start(self, function: Callable[..., None], *args: Any) -> None:
        self._threads.append(threading.Thread(target=function, args=args))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                asking, _ = self._listener.accept()
                answering = socket.create_connection(("127.0.0.1", self._inner))
            except OSError:
                return
            self._sockets += [asking, answering]
            self._start(self._relay, asking, answering, True)
            self._start(self._relay, answering, asking, False)

    def _relay(self, source: socket.socket, sink: socket.socket, asks: bool) -> None:
        begun: bytes | None = b""
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if asks and begun is not None:
                    begun += data
                    _, found, rest = begun.partition(b"grpc-accept-encoding")
                    if found and len(rest) > rest[0]:
                        self.encodings.append(rest[1 : 1 + rest[0]].decode())
                        begun = None  # later requests of a connection refer to this header
                if not asks:
                    self.bytes_out += len(data)
                sink.sendall(data)
        _hang_up(source)
        _hang_up(sink)


def _hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


class _Methods(grpc.GenericRpcHandler):
    def __init__(self, server: GrpcStandIn) -> None:
        self._server = server

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = details.method.removeprefix("/qdrant.")
        if method not in _METHODS:
            return None
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._server.answer(method, request, context),
            _METHODS[method][0].FromString,
            lambda answer: answer.SerializeToString(),
        )


def _forget_newer(message: Any, version: tuple[int, ...]) -> None:
    """Remove what a version does not know from a message, as reading it does."""
    if isinstance(message, q.Filter):
        lists = [message.must, message.should, message.must_not, message.min_should.conditions]
        for conditions in lists:
            known = [c for c in conditions if version >= (1, 19) or not c.HasField("slice")]
            if len(known) < len(conditions):
                kept = [type(c).FromString(c.SerializeToString()) for c in known]
                del conditions[:]
                conditions.extend(kept)
    if isinstance(message, q.Match):
        kind = message.WhichOneof("match_value")
        if (kind == "prefix" and version < (1, 19)) or (kind == "substring" and version < (1, 20)):
            raise RefusalError(400, "Malformed Match condition")
    for field, value in message.ListFields():
        if field.type != field.TYPE_MESSAGE or field.name in ("payload", "metadata"):
            continue
        for each in value if field.is_repeated else [value]:
            if hasattr(each, "ListFields"):
                _forget_newer(each, version)


# Requests in REST's form.


def _plain(model: Any) -> Any:
    if isinstance(model, list):
        return [_plain(each) for each in model]
    if hasattr(model, "model_dump_json"):
        return json.loads(model.model_dump_json(exclude_none=True, by_alias=True))
    return model


def _points(request: Any, *rest: str) -> list[str]:
    return ["collections", request.collection_name, "points", *rest]


def _selected(request: Any) -> dict[str, Any]:
    return {
        "with_payload": _plain(GrpcToRest.convert_with_payload_interface(request.with_payload)),
        "with_vector": GrpcToRest.convert_with_vectors_selector(request.with_vectors)
        if request.HasField("with_vectors")
        else False,
    }


def _filter(request: Any) -> dict[str, Any]:
    if not request.HasField("filter"):
        return {}
    return {"filter": _plain(GrpcToRest.convert_filter(request.filter))}


def _ids(ids: Any) -> list[Any]:
    return [GrpcToRest.convert_point_id(each) for each in ids]


def _create(request: Any) -> Request:
    body: dict[str, Any] = {"vectors": GrpcToRest.convert_vectors_config(request.vectors_config)}
    if request.HasField("sparse_vectors_config"):
        sparse = GrpcToRest.convert_sparse_vector_config(request.sparse_vectors_config)
        body["sparse_vectors"] = {name: _plain(each) for name, each in sparse.items()}
    for name, convert in (
        ("hnsw_config", GrpcToRest.convert_hnsw_config_diff),
        ("optimizers_config", GrpcToRest.convert_optimizers_config_diff),
        ("wal_config", GrpcToRest.convert_wal_config_diff),
        ("quantization_config", GrpcToRest.convert_quantization_config),
        ("strict_mode_config", GrpcToRest.convert_strict_mode_config),
        ("payload", GrpcToRest.convert_payload_storage_params),
    ):
        if request.HasField(name):
            body[name] = convert(getattr(request, name))
    for name in (
        "shard_number",
        "replication_factor",
        "write_consistency_factor",
        "on_disk_payload",
    ):
        if request.HasField(name):
            body[name] = getattr(request, name)
    if request.metadata:
        body["metadata"] = GrpcToRest.convert_payload(request.metadata)
    plain = {name: _plain(value) for name, value in body.items()}
    return "PUT", ["collections", request.collection_name], plain


def _update(request: Any) -> Request:
    body = _plain(GrpcToRest.convert_update_collection(request))
    return "PATCH", ["collections", request.collection_name], body


def _aliases(request: Any) -> Request:
    actions = [_plain(GrpcToRest.convert_alias_operations(each)) for each in request.actions]
    return "POST", ["collections", "aliases"], {"actions": actions}


def _upsert(request: Any) -> Request:
    points = [_plain(GrpcToRest.convert_point_struct(point)) for point in request.points]
    body: dict[str, Any] = {"points": points}
    if request.HasField("update_mode"):
        body["update_mode"] = GrpcToRest.convert_update_mode(request.update_mode).value
    return "PUT", _points(request), body


def _get(request: Any) -> Request:
    return "POST", _points(request), {"ids": _ids(request.ids), **_selected(request)}


def _scroll(request: Any) -> Request:
    body = {**_selected(request), **_filter(request)}
    if request.HasField("limit"):
        body["limit"] = request.limit
    if request.HasField("offset"):
        body["offset"] = GrpcToRest.convert_point_id(request.offset)
    if request.HasField("order_by"):
        order = GrpcToRest.convert_order_by(request.order_by)
        body["order_by"] = json.loads(order.model_dump_json(exclude_none=True))
    return "POST", _points(request, "scroll"), body


def _count(request: Any) -> Request:
    exact = request.exact if request.HasField("exact") else True
    return "POST", _points(request, "count"), {"exact": exact, **_filter(request)}


def _facet(request: Any) -> Request:
    body = {"key": request.key, **_filter(request)}
    if request.HasField("limit"):
        body["limit"] = request.limit
    return "POST", ["collections", request.collection_name, "facet"], body


def _query(request: Any) -> Request:
    return "POST", _points(request, "query"), _plain(GrpcToRest.convert_query_points(request))


def _query_batch(request: Any) -> Request:
    searches = [_plain(GrpcToRest.convert_query_points(each)) for each in request.query_points]
    return "POST", _points(request, "query", "batch"), {"searches": searches}


def _delete(request: Any) -> Request:
    body = _plain(GrpcToRest.convert_points_selector(request.points))
    return "POST", _points(request, "delete"), body


def _new_vector(request: Any) -> Request:
    given = request.sparse_config if request.HasField("sparse_config") else None
    assert given is not None, "only sparse vectors are added here"
    modifier = GrpcToRest.convert_modifier(given.modifier) if given.HasField("modifier") else None
    config = {"sparse": {"modifier": None if modifier is None else modifier.value}}
    path = ["collections", request.collection_name, "vectors", request.vector_name]
    return "PUT", path, config


def _gone_vector(request: Any) -> Request:
    path = ["collections", request.collection_name, "vectors", request.vector_name]
    return "DELETE", path, {}


def _operation(request: Any, name: str) -> Any:
    operation = q.PointsUpdateOperation()
    inner = getattr(operation, name)
    for field in ("payload", "keys", "points_selector", "key"):
        if field not in request.DESCRIPTOR.fields_by_name:
            continue
        value = getattr(request, field)
        if field == "payload":
            for key in value:
                inner.payload[key].CopyFrom(value[key])
        elif field == "keys":
            inner.keys.extend(value)
        elif request.HasField(field):
            if field == "key":
                inner.key = value
            else:
                inner.points_selector.CopyFrom(value)
    return _plain(GrpcToRest.convert_points_update_operation(operation))[name]


def _batch(request: Any) -> Request:
    operations = [_plain(GrpcToRest.convert_points_update_operation(o)) for o in request.operations]
    return "POST", _points(request, "batch"), {"operations": operations}


_KINDS = {number: name.removeprefix("FieldType").lower() for name, number in q.FieldType.items()}


def _index(request: Any) -> Request:
    schema: Any = _KINDS[request.field_type]
    if request.HasField("field_index_params"):
        given = GrpcToRest.convert_payload_schema_params(request.field_index_params)
        schema = {**_plain(given), "type": schema}
    path = ["collections", request.collection_name, "index"]
    return "PUT", path, {"field_name": request.field_name, "field_schema": schema}


# Answers in gRPC's form.


def _done(result: Any) -> Any:
    return q.PointsOperationResponse(
        result=RestToGrpc.convert_update_result(models.UpdateResult(**result))
    )


def _records(result: Any) -> list[Any]:
    return [
        RestToGrpc.convert_retrieved_point(models.Record(**{"payload": {}, **record}))
        for record in result
    ]


def _scrolled(result: Any) -> Any:
    answer = q.ScrollResponse(result=_records(result["points"]))
    following = result["next_page_offset"]
    if following is not None:
        answer.next_page_offset.CopyFrom(RestToGrpc.convert_extended_point_id(following))
    return answer


def _hits(result: Any) -> list[Any]:
    return [
        RestToGrpc.convert_scored_point(models.ScoredPoint(**point)) for point in result["points"]
    ]


def _facets(result: Any) -> Any:
    kinds = {bool: "bool_value", int: "integer_value", str: "string_value"}
    return q.FacetResponse(
        hits=[
            q.FacetHit(
                value=q.FacetValue(**{kinds[type(each["value"])]: each["value"]}),
                count=each["count"],
            )
            for each in result["hits"]
        ]
    )


def _described(result: Any) -> Any:
    info = models.CollectionInfo(**result)
    return q.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))


def _alias_list(result: Any) -> Any:
    return q.ListAliasesResponse(aliases=[q.AliasDescription(**each) for each in result["aliases"]])


def _to(method: str, *rest: str) -> Callable[[Any], Request]:
    return lambda request: (method, ["collections", request.collection_name, *rest], {})


def _operated(result: Any) -> Any:
    return q.CollectionOperationResponse(result=result)


_METHODS: dict[str, tuple[Any, Callable[[Any], Request], Callable[[Any], Any]]] = {
    "Qdrant/HealthCheck": (
        q.HealthCheckRequest,
        lambda _: ("GET", [""], {}),
        lambda result: q.HealthCheckReply(**result),
    ),
    "Collections/Get": (q.GetCollectionInfoRequest, _to("GET"), _described),
    "Collections/CollectionExists": (
        q.CollectionExistsRequest,
        _to("GET", "exists"),
        lambda result: q.CollectionExistsResponse(result=q.CollectionExists(**result)),
    ),
    "Collections/List": (
        q.ListCollectionsRequest,
        lambda _: ("GET", ["collections"], {}),
        lambda result: q.ListCollectionsResponse(
            collections=[q.CollectionDescription(**each) for each in result["collections"]]
        ),
    ),
    "Collections/Create": (q.CreateCollection, _create, _operated),
    "Collections/Update": (q.UpdateCollection, _update, _operated),
    "Collections/Delete": (q.DeleteCollection, _to("DELETE"), _operated),
    "Collections/UpdateAliases": (q.ChangeAliases, _aliases, _operated),
    "Collections/ListAliases": (
        q.ListAliasesRequest,
        lambda _: ("GET", ["aliases"], {}),
        _alias_list,
    ),
    "Collections/ListCollectionAliases": (
        q.ListCollectionAliasesRequest,
        _to("GET", "aliases"),
        _alias_list,
    ),
    "Points/Upsert": (q.UpsertPoints, _upsert, _done),
    "Points/Get": (q.GetPoints, _get, lambda result: q.GetResponse(result=_records(result))),
    "Points/Scroll": (q.ScrollPoints, _scroll, _scrolled),
    "Points/Count": (
        q.CountPoints,
        _count,
        lambda result: q.CountResponse(result=q.CountResult(**result)),
    ),
    "Points/Facet": (q.FacetCounts, _facet, _facets),
    "Points/Query": (q.QueryPoints, _query, lambda result: q.QueryResponse(result=_hits(result))),
    "Points/QueryBatch": (
        q.QueryBatchPoints,
        _query_batch,
        lambda result: q.QueryBatchResponse(
            result=[q.BatchResult(result=_hits(each)) for each in result]
        ),
    ),
    "Points/Delete": (q.DeletePoints, _delete, _done),
    "Points/SetPayload": (
        q.SetPayloadPoints,
        lambda request: (
            "POST",
            _points(request, "payload"),
            _operation(request, "set_payload"),
        ),
        _done,
    ),
    "Points/DeletePayload": (
        q.DeletePayloadPoints,
        lambda request: (
            "POST",
            _points(request, "payload", "delete"),
            _operation(request, "delete_payload"),
        ),
        _done,
    ),
    "Points/UpdateBatch": (
        q.UpdateBatchPoints,
        _batch,
        lambda result: q.UpdateBatchResponse(
            result=[RestToGrpc.convert_update_result(models.UpdateResult(**r)) for r in result]
        ),
    ),
    "Points/CreateVectorName": (q.CreateVectorNameRequest, _new_vector, _done),
    "Points/DeleteVectorName": (q.DeleteVectorNameRequest, _gone_vector, _done),
    "Points/CreateFieldIndex": (q.CreateFieldIndexCollection, _index, _done),
    "Points/DeleteFieldIndex": (
        q.DeleteFieldIndexCollection,
        lambda request: (
            "DELETE",
            ["collections", request.collection_name, "index", request.field_name],
            {},
        ),
        _done,
    ),
}


if __name__ == "__main__":  # a server in a process of its own, which keeps its data in a folder
    with GrpcStandIn(port=int(sys.argv[1]), rest_port=int(sys.argv[2]), folder=sys.argv[3]):
        threading.Event().wait()
