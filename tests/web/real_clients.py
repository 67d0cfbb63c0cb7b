"""Call a running service with the clients of other services, and record what they send.

It needs nothing of this package, so that any environment with some of the clients can run it:

    PYTHON tests/web/real_clients.py http://127.0.0.1:8000 --image scene.png --ids ID ID ID
    PYTHON tests/web/real_clients.py ... --record tests/web/recorded_clients

EDJE_QDRANT_SERVICE_KEY holds the service's key. Clients that are not installed are left out and
named. It exits with 1 if a client fails, and with 2 if none is installed.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import sys
import threading
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

QUERY = "a red star"
TEXT = "Washington is the capital."
_HEADERS = ("content-type", "accept")


class Recorder(ThreadingHTTPServer):
    """Forward requests to a service, and keep them in `requests`."""

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.target = target
        self.requests: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Forward(BaseHTTPRequestHandler):
    server: Recorder

    def do_GET(self) -> None:
        self._forward(None)

    def do_POST(self) -> None:
        self._forward(self.rfile.read(int(self.headers["Content-Length"])))

    def _forward(self, body: bytes | None) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(
            {
                "method": self.command,
                "path": self.path,
                "headers": {name: headers[name] for name in _HEADERS if name in headers}
                | ({"authorization": "Bearer {key}"} if "authorization" in headers else {}),
                "body": None if body is None else json.loads(body),
            }
        )
        for name in ("host", "accept-encoding", "connection"):
            headers.pop(name, None)
        request = urllib.request.Request(
            self.server.target + self.path, body, headers, method=self.command
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, data = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, data = error.code, error.read()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Calls:
    """The calls of each client: a method is named after the fixture that it records."""

    def __init__(self, url: str, key: str, image: bytes, ids: list[str], best: str) -> None:
        self.url, self.key, self.ids, self.best = url, key, ids, best
        self.uri = "data:image/png;base64," + base64.b64encode(image).decode()

    def _ranked(self, indices: list[int]) -> None:
        assert self.ids[indices[0]] == self.best, (indices, self.best)

    def cohere_v2(self) -> None:
        import cohere

        client = cohere.ClientV2(self.key, base_url=self.url)
        answer = client.rerank(
            model="edje", query=QUERY, documents=self.ids, top_n=2, max_tokens_per_doc=512
        )
        assert len(answer.results) == 2
        assert 0 <= answer.results[0].relevance_score <= 1
        self._ranked([result.index for result in answer.results])

    def cohere_v2_image(self) -> None:
        import cohere

        client = cohere.ClientV2(self.key, base_url=self.url)
        answer = client.rerank(model="edje", query=QUERY, documents=[*self.ids, self.uri])
        assert len(answer.results) == len(self.ids) + 1

    def cohere_v2_error(self) -> None:
        import cohere

        client = cohere.ClientV2(self.key, base_url=self.url)
        error = _failure(
            cohere.core.api_error.ApiError,
            lambda: client.rerank(model="edje", query=QUERY, documents=[TEXT]),
        )
        assert error.status_code == 400
        assert "scores texts against images" in error.body["detail"]

    def cohere_v1(self) -> None:
        import cohere

        client = cohere.Client(self.key, base_url=self.url)
        answer = client.rerank(
            model="edje",
            query=QUERY,
            documents=[{"text": image_id} for image_id in self.ids],
            rank_fields=["text"],
            return_documents=True,
            max_chunks_per_doc=10,
        )
        assert answer.results[0].document.text == self.best
        self._ranked([result.index for result in answer.results])

    def langchain_cohere(self) -> None:
        from langchain_cohere import CohereRerank
        from langchain_core.documents import Document

        reranker = CohereRerank(base_url=self.url, cohere_api_key=self.key, model="edje", top_n=2)
        documents = [Document(page_content=image_id) for image_id in self.ids]
        found = reranker.compress_documents(documents, QUERY)
        assert [found[0].page_content, len(found)] == [self.best, 2]

    def langchain_community_jina(self) -> None:
        from langchain_community.document_compressors import jina_rerank
        from langchain_core.documents import Document

        jina_rerank.JINA_API_URL = f"{self.url}/v1/rerank"
        reranker = jina_rerank.JinaRerank(jina_api_key=self.key, model="edje", top_n=2)
        documents = [Document(page_content=image_id) for image_id in self.ids]
        found = reranker.compress_documents(documents, QUERY)
        assert [found[0].page_content, len(found)] == [self.best, 2]
        error = _failure(RuntimeError, lambda: reranker.rerank([TEXT], QUERY))
        assert "scores texts against images" in str(error)

    def litellm_jina(self) -> None:
        self._litellm("jina_ai/edje", f"{self.url}/v1/rerank")

    def litellm_cohere(self) -> None:
        self._litellm("cohere/edje", f"{self.url}/v2/rerank")

    def litellm_hosted_vllm(self) -> None:
        self._litellm("hosted_vllm/edje", self.url)

    def litellm_huggingface(self) -> None:
        self._litellm("huggingface/edje", self.url)

    def _litellm(self, model: str, api_base: str) -> None:
        import litellm

        answer = litellm.rerank(
            model=model, api_base=api_base, api_key=self.key, query=QUERY, documents=self.ids,
            top_n=2, return_documents=True,
        )  # fmt: skip
        self._ranked([result["index"] for result in answer.results])
        error = _failure(
            Exception,
            lambda: litellm.rerank(
                model=model, api_base=api_base, api_key=self.key, query=QUERY, documents=[TEXT]
            ),
        )
        assert "scores texts against images" in str(error), error

    def litellm_hosted_vllm_image(self) -> None:
        import litellm

        part = {"type": "image_url", "image_url": {"url": self.uri}}
        answer = litellm.rerank(
            model="hosted_vllm/edje", api_base=self.url, api_key=self.key, query=QUERY,
            documents=[{"content": [part]}],
        )  # fmt: skip
        assert [result["index"] for result in answer.results] == [0]

    def litellm_embeddings(self) -> None:
        import litellm

        answer = litellm.embedding(
            model="openai/edje", api_base=f"{self.url}/v1", api_key=self.key, input=[QUERY]
        )
        assert len(answer.data[0]["embedding"]) > 1

    def llama_index_cohere(self) -> None:
        from llama_index.postprocessor.cohere_rerank import CohereRerank

        self._llama_index(CohereRerank(api_key=self.key, base_url=self.url, model="edje"))

    def llama_index_jina(self) -> None:
        from llama_index.core.schema import NodeWithScore, TextNode
        from llama_index.postprocessor.jinaai_rerank import JinaRerank

        reranker = JinaRerank(api_key=self.key, base_url=f"{self.url}/v1", model="edje")
        self._llama_index(reranker)
        nodes = [NodeWithScore(node=TextNode(text=TEXT))]
        error = _failure(RuntimeError, lambda: reranker.postprocess_nodes(nodes, query_str=QUERY))
        assert "scores texts against images" in str(error)

    def llama_index_tei(self) -> None:
        from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

        token = f"Bearer {self.key}"
        self._llama_index(TextEmbeddingInference(base_url=self.url, top_n=2, auth_token=token))

    def _llama_index(self, reranker: Any) -> None:
        from llama_index.core.schema import NodeWithScore, TextNode

        nodes = [NodeWithScore(node=TextNode(text=image_id)) for image_id in self.ids]
        found = reranker.postprocess_nodes(nodes, query_str=QUERY)
        assert [found[0].node.text, len(found)] == [self.best, 2]

    def haystack_cohere(self) -> None:
        from haystack.utils import Secret
        from haystack_integrations.components.rankers.cohere import CohereRanker

        self._haystack(
            CohereRanker(model="edje", api_key=Secret.from_token(self.key), api_base_url=self.url)
        )

    def haystack_jina(self) -> None:
        from haystack.utils import Secret
        from haystack_integrations.components.rankers.jina import JinaRanker

        self._haystack(
            JinaRanker("edje", Secret.from_token(self.key), base_url=f"{self.url}/v1/rerank")
        )

    def haystack_tei(self) -> None:
        from haystack.utils import Secret
        from haystack_integrations.components.rankers.huggingface_api import (
            HuggingFaceTEIRanker,
        )

        self._haystack(HuggingFaceTEIRanker(url=self.url, token=Secret.from_token(self.key)))

    def _haystack(self, ranker: Any) -> None:
        from haystack import Document

        if hasattr(ranker, "warm_up"):
            ranker.warm_up()
        documents = [Document(content=image_id) for image_id in self.ids]
        found = ranker.run(query=QUERY, documents=documents, top_k=2)["documents"]
        assert [found[0].content, len(found)] == [self.best, 2]
        error = _failure(
            Exception, lambda: ranker.run(query=QUERY, documents=[Document(content=TEXT)])
        )
        assert "scores texts against images" in str(getattr(error, "body", error))

    def openai_embeddings(self) -> None:
        client = self._openai()
        texts = client.embeddings.create(model="edje", input=[QUERY, "a blue ring"]).data
        one = client.embeddings.create(model="edje", input=QUERY, encoding_format="float").data
        assert [len(texts), len(one)] == [2, 1]
        both = (texts[0].embedding, one[0].embedding)
        assert max(abs(a - b) for a, b in zip(*both, strict=True)) < 1e-6

    def openai_image_embeddings(self) -> None:
        client = self._openai()
        found = client.embeddings.create(model="edje", input=[{"image": self.uri}, QUERY]).data
        assert len(found[0].embedding) == len(found[1].embedding)

    def openai_models(self) -> None:
        client = self._openai()
        (model,) = client.models.list().data
        assert client.models.retrieve(model.id) == model

    def _openai(self) -> Any:
        import openai

        return openai.OpenAI(api_key=self.key, base_url=f"{self.url}/v1")


#: Name of a call -> the package whose version is recorded.
PACKAGES = {
    "cohere_v2": "cohere",
    "cohere_v2_image": "cohere",
    "cohere_v2_error": "cohere",
    "cohere_v1": "cohere",
    "langchain_cohere": "langchain-cohere",
    "langchain_community_jina": "langchain-community",
    "litellm_jina": "litellm",
    "litellm_cohere": "litellm",
    "litellm_hosted_vllm": "litellm",
    "litellm_hosted_vllm_image": "litellm",
    "litellm_huggingface": "litellm",
    "litellm_embeddings": "litellm",
    "llama_index_cohere": "llama-index-postprocessor-cohere-rerank",
    "llama_index_jina": "llama-index-postprocessor-jinaai-rerank",
    "llama_index_tei": "llama-index-postprocessor-tei-rerank",
    "haystack_cohere": "cohere-haystack",
    "haystack_jina": "jina-haystack",
    "haystack_tei": "huggingface-api-haystack",
    "openai_embeddings": "openai",
    "openai_image_embeddings": "openai",
    "openai_models": "openai",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="address of a running service")
    parser.add_argument("--image", type=Path, required=True, help="a PNG that is sent")
    parser.add_argument("--ids", nargs="+", required=True, help="ids of its collection")
    parser.add_argument("--record", type=Path, help="folder for the requests that were sent")
    parser.add_argument("--only", nargs="+", default=[*PACKAGES], help="names of calls")
    options = parser.parse_args()
    key = os.environ["EDJE_QDRANT_SERVICE_KEY"]
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["ANONYMIZED_TELEMETRY"] = os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
    recorder = Recorder(options.url)
    best = _best(options.url, key, options.ids)
    calls = Calls(recorder.url, key, options.image.read_bytes(), options.ids, best)
    tried, failed = 0, []
    for name in options.only:
        try:
            installed = version(PACKAGES[name])
        except PackageNotFoundError:
            _say(f"{name}: {PACKAGES[name]} is not installed")
            continue
        recorder.requests.clear()
        tried += 1
        call: Callable[[], None] = getattr(calls, name)
        try:
            call()
        except Exception:
            failed.append(name)
            _say(f"{name}: {PACKAGES[name]} {installed} FAILED\n{traceback.format_exc()}")
            continue
        _say(f"{name}: {PACKAGES[name]} {installed} works")
        if options.record is not None:
            _write(options.record / f"{name}.json", name, installed, recorder.requests, calls)
    if failed:
        _say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0 if tried else 2


def _failure(kind: type[Exception], call: Callable[[], Any]) -> Any:
    """Return the error that a call raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _best(url: str, key: str, ids: list[str]) -> str:
    """Return the id that the service ranks first."""
    body = json.dumps({"query": QUERY, "documents": ids, "top_n": 1}).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/rerank", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return ids[json.load(answer)["results"][0]["index"]]


def _write(
    path: Path, name: str, installed: str, requests: list[dict[str, Any]], calls: Calls
) -> None:
    """Write requests with placeholders for what belongs to this run."""
    recorded = {"client": PACKAGES[name], "version": installed, "requests": requests}
    text = json.dumps(recorded, indent=1)
    for number, image_id in enumerate(calls.ids):
        text = text.replace(image_id, f"{{id:{number}}}")
    for value, placeholder in ((calls.uri, "{image}"), (calls.key, "{key}")):
        text = text.replace(value, placeholder)
    text = re.sub(r'"/v1/models/[^"]+"', '"/v1/models/{model}"', text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
