"""A small HTTP server that answers as the Hugging Face hub does, as far as models need it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

__all__ = ["TOKEN", "HubStandIn", "Repository", "use_hub"]

#: The token that may write, and read private repositories.
TOKEN = "hf_of-the-owner"


def use_hub(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_DISABLE_XET do before the import."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> files
    messages: list[str] = field(default_factory=list)


class HubStandIn:
    """Repositories in memory behind the hub's routes; large files go by the LFS protocol."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # sha256 -> content
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubStandIn:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return repository.commits[repository.branches.get(revision, revision)]


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")


class _Refusal(Exception):  # noqa: N818 - it is an answer
    def __init__(self, status: int, code: str = "") -> None:
        super().__init__(code)
        self.status, self.code = status, code


def _handler(hub: HubStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Write nothing to stderr."""

        def do_HEAD(self) -> None:
            self._answer(b"")

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") != "chunked":
                self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
                return
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            self._answer(body)

        do_PUT = do_POST  # noqa: N815 - the name that http.server looks for

        def _answer(self, body: bytes) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            try:
                self._route(path, body)
            except _Refusal as refusal:
                headers = {"X-Error-Code": refusal.code} if refusal.code else {}
                self._send(refusal.status, json.dumps({"error": "refused"}).encode(), headers)

        def _route(self, path: str, body: bytes) -> None:
            parts = path.strip("/").split("/")
            if path == "/":
                self._send(200, b"")
            elif path == "/api/validate-yaml":
                self._send_json({"errors": [], "warnings": []})
            elif path == "/api/repos/create":
                self._create(json.loads(body))
            elif parts[0] == "lfs":
                assert hashlib.sha256(body).hexdigest() == parts[1]
                hub.large[parts[1]] = body
                self._send(200, b"")
            elif parts[0] == "cdn":
                assert self.headers.get("Authorization") is None  # it is no host of the hub
                self._send(200, hub.large[parts[1]])
            elif path.endswith(".git/info/lfs/objects/batch"):
                self._batch(json.loads(body))
            elif parts[:2] == ["api", "models"]:
                repository = self._open("/".join(parts[2:4]))
                self._api(repository, parts[4], "/".join(parts[5:]), body)
            elif "resolve" not in parts:
                raise _Refusal(404)
            else:
                place = parts.index("resolve")
                repository = self._open("/".join(parts[:place]))
                self._file(repository, parts[place + 1], "/".join(parts[place + 2 :]))

        def _create(self, asked: dict[str, Any]) -> None:
            self._require_token()
            repo_id = f"{asked['organization']}/{asked['name']}"
            url = {"url": f"{hub.url}/{repo_id}"}
            if repo_id in hub.repositories:
                self._send(409, json.dumps(url).encode(), {"Content-Type": "application/json"})
                return
            made = Repository(bool(asked.get("private")) or asked.get("visibility") == "private")
            made.branches["main"] = "0" * 40
            made.commits["0" * 40] = {".gitattributes": b""}
            hub.repositories[repo_id] = made
            self._send_json(url)

        def _api(self, repository: Repository, what: str, revision: str, body: bytes) -> None:
            if what == "branch":
                self._require_token()
                if revision in repository.branches:
                    raise _Refusal(409)
                repository.branches[revision] = repository.branches["main"]
                self._send_json({})
            elif what == "preupload":
                files = [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if _is_large(each["path"]) else "regular",
                        "shouldIgnore": False,
                    }
                    for each in json.loads(body)["files"]
                ]
                self._send_json({"files": files})
            elif what == "commit":
                self._commit(repository, revision, body)
            elif what == "revision":
                commit = self._commit_of(repository, revision)
                names = [{"rfilename": name} for name in repository.commits[commit]]
                self._send_json({"id": "x/y", "sha": commit, "siblings": names, "tags": []})
            elif what == "tree":
                commit = self._commit_of(repository, revision)
                content = repository.commits[commit]
                self._send_json([_entry(name, data) for name, data in content.items()])
            else:
                raise _Refusal(404)

        def _commit(self, repository: Repository, branch: str, body: bytes) -> None:
            self._require_token()
            files = dict(repository.commits[self._commit_of(repository, branch)])
            for line in body.decode().splitlines():
                told = json.loads(line)
                value = told["value"]
                if told["key"] == "header":
                    repository.messages.append(value["summary"])
                elif told["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif told["key"] == "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]
                elif told["key"] == "deletedFile":
                    del files[value["path"]]
            commit = hashlib.sha1(repr((files, repository.messages)).encode()).hexdigest()
            repository.commits[commit] = files
            repository.branches[branch] = commit
            url = f"{hub.url}/x/y/commit/{commit}"
            self._send_json({"success": True, "commitOid": commit, "commitUrl": url})

        def _batch(self, asked: dict[str, Any]) -> None:
            self._require_token()
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}}
                for each in asked["objects"]
            ]
            self._send_json({"transfer": "basic", "objects": objects})

        def _file(self, repository: Repository, revision: str, name: str) -> None:
            commit = self._commit_of(repository, revision)
            content = repository.commits[commit].get(name)
            headers = {"X-Repo-Commit": commit}
            if content is None:
                raise _Refusal(404, "EntryNotFound")
            if not _is_large(name):
                self._send(200, content, {**headers, "ETag": f'"{_git_id(content)}"'})
                return
            digest = hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            # To another host, as the hub does.
            place = f"http://localhost:{self.server.server_address[1]}/cdn/{digest}"
            self._send(302, b"", {**headers, **linked, "Location": place})

        def _open(self, repo_id: str) -> Repository:
            found = hub.repositories.get(repo_id)
            if found is None or (found.private and not self._has_token()):
                raise _Refusal(401 if not self._has_token() else 404, "RepoNotFound")
            return found

        def _commit_of(self, repository: Repository, revision: str) -> str:
            commit = repository.branches.get(revision, revision)
            if commit not in repository.commits:
                raise _Refusal(404, "RevisionNotFound")
            return commit

        def _has_token(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def _require_token(self) -> None:
            if not self._has_token():
                raise _Refusal(401)

        def _send_json(self, data: Any) -> None:
            self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(content), "oid": _git_id(content)}
    if _is_large(name):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry
