"""A small HTTP server that speaks Qdrant's REST interface over a real client in memory."""

from __future__ import annotations

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_client import QdrantClient, models


class StandIn:
    """Answer at `url`; answer with the statuses queued in `failures` first.

    Attributes:
        url: Where it listens.
        client: What keeps the data.
        failures: Statuses (with headers) to answer with, before anything else.
        seen: Method and path of every request.
        params: How each search was to be done.
        created: Collection -> what was asked for when it was made.
        indexed: Collection -> field -> the payload index asked for.
        answers_left: How many more requests to answer before hanging up on every one; None for all.
    """

    def __init__(self) -> None:
        self.client = QdrantClient(":memory:")
        self.failures: deque[tuple[int, dict[str, str]]] = deque()
        self.seen: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.params: list[models.SearchParams] = []
        self.created: dict[str, dict[str, Any]] = {}
        self.indexed: dict[str, dict[str, Any]] = {}
        self.answers_left: int | None = None
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else {}
                path = self.path.partition("?")[0]
                outer.seen.append(f"{self.command} {path}")
                outer.headers.append({k.lower(): v for k, v in self.headers.items()})
                if outer.answers_left is not None:
                    if outer.answers_left == 0:
                        self.close_connection = True
                        return None
                    outer.answers_left -= 1
                if outer.failures:
                    status, headers = outer.failures.popleft()
                    return self.reply(status, {"status": {"error": "told to fail"}}, headers)
                try:
                    with lock:
                        result = outer.answer(self.command, path.strip("/").split("/"), body)
                except ValueError as error:
                    status = 404 if "not found" in str(error) else 400
                    return self.reply(status, {"status": {"error": str(error)}})
                return self.reply(200, {"result": result, "status": "ok", "time": 0.0})

            def reply(
                self, status: int, data: dict[str, Any], headers: dict[str, str] | None = None
            ) -> None:
                text = json.dumps(data).encode()
                self.send_response(status)
                for key, value in {**(headers or {}), "Content-Length": str(len(text))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_PUT = do_POST = do_PATCH = handle_any  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> StandIn:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.client.close()

    def answer(self, method: str, path: list[str], body: dict[str, Any]) -> Any:
        name = path[1] if len(path) > 1 else ""
        match (method, *path[2:]):
            case ("GET",) if not name:
                return _plain(self.client.get_collections())
            case ("GET", "exists"):
                return {"exists": self.client.collection_exists(name)}
            case ("GET",):
                info = _plain(self.client.get_collection(name))
                # The client's local mode keeps none of these.
                asked = self.created.get(name, {})
                info["config"]["quantization_config"] = asked.get("quantization_config")
                params = ("shard_number", "replication_factor", "write_consistency_factor")
                for key in (*params, "on_disk_payload"):
                    if key in asked:
                        info["config"]["params"][key] = asked[key]
                if "on_disk" in asked.get("vectors", {}):
                    info["config"]["params"]["vectors"]["on_disk"] = asked["vectors"]["on_disk"]
                return {**info, "payload_schema": self.indexed.get(name, {})}
            case ("PUT", "index"):
                # The client's local mode keeps no indexes, so what was asked for is noted here.
                field = models.CreateFieldIndex(**body)
                schema = body["field_schema"]
                kind = schema["type"] if isinstance(schema, dict) else schema
                self.indexed.setdefault(name, {})[field.field_name] = {
                    "data_type": kind,
                    "points": 0,
                    "params": schema if isinstance(schema, dict) else None,
                }
                return {"operation_id": 0, "status": "completed"}
            case ("PUT",):
                made = models.CreateCollection(**body)
                done = self.client.create_collection(
                    name, vectors_config=made.vectors, metadata=made.metadata
                )
                self.created[name] = body
                return done
            case ("PATCH",):
                return self.client.update_collection(
                    name, metadata=models.UpdateCollection(**body).metadata
                )
            case ("PUT", "points"):
                return _plain(self.client.upsert(name, models.PointsList(**body).points))
            case ("POST", "points"):
                named = models.PointRequest(**body)
                found = self.client.retrieve(
                    name,
                    named.ids,
                    with_payload=named.with_payload,
                    with_vectors=bool(named.with_vector),
                )
                return [_plain(record) for record in found]
            case ("POST", "points", "query", "batch"):
                searches = models.QueryRequestBatch(**body).searches
                for search in searches:
                    assert search.params is not None
                    self.params.append(search.params)
                    search.params = None
                return [_plain(r) for r in self.client.query_batch_points(name, searches)]
            case ("POST", "points", "scroll"):
                wanted = models.ScrollRequest(**body)
                records, following = self.client.scroll(
                    name,
                    wanted.filter,
                    limit=wanted.limit or 10,
                    offset=wanted.offset,
                    with_payload=wanted.with_payload,
                    with_vectors=bool(wanted.with_vector),
                )
                points = [_plain(record) for record in records]
                return {"points": points, "next_page_offset": following}
            case ("POST", "points", "batch"):
                operations = models.UpdateOperations(**body).operations
                return [_plain(r) for r in self.client.batch_update_points(name, operations)]
            case ("POST", "points", "payload", "delete"):
                gone = models.DeletePayload(**body)
                return _plain(self.client.delete_payload(name, gone.keys, gone.filter))
            case ("POST", "points", "delete") if "filter" in body:
                return _plain(self.client.delete(name, models.FilterSelector(**body)))
            case ("POST", "points", "delete"):
                return _plain(self.client.delete(name, models.PointIdsList(**body)))
            case ("POST", "points", "count"):
                counted = models.CountRequest(**body)
                return _plain(self.client.count(name, counted.filter, exact=bool(counted.exact)))
        raise ValueError(f"{method} {path} not found")


def _plain(model: Any) -> Any:
    return json.loads(model.model_dump_json())
