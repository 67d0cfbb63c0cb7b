"""The tools for agents, called by the SDK's own client."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="needs the extra mcp")

import anyio
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.integrations.mcp.server import create_server
from edje_qdrant.integrations.mcp.tools import ImageTools
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.retriever import TwoStageRetriever

WriteImages = Callable[..., list[Path]]
Use = Callable[[Client], Awaitable[None]]

READING = {
    "search_images", "similar_images", "rerank", "explain", "get_thumbnail", "collection_info",
}  # fmt: skip


@pytest.fixture
def collection(
    tiny_model: EDJEModel, tmp_path: Path, write_images: WriteImages
) -> Iterator[ImageCollection]:
    write_images(tmp_path / "images", 6)
    with ImageCollection.create(tmp_path / "index", "images", tiny_model.contract()) as made:
        ingest_images(tmp_path / "images", made, tiny_model, workers=1, progress=False)
        yield made


@pytest.fixture
def tools(collection: ImageCollection, tiny_model: EDJEModel, tmp_path: Path) -> ImageTools:
    retriever = TwoStageRetriever(collection, tiny_model)
    return ImageTools(retriever, images=tmp_path / "images")


def use(tools: ImageTools, work: Use) -> None:
    async def run() -> None:
        async with Client(create_server(tools)) as client:
            await work(client)

    anyio.run(run)


def data_of(result: Any) -> dict[str, Any]:
    assert not result.is_error, result.content
    data: dict[str, Any] = result.structured_content
    assert json.loads(result.content[0].text) == data  # for clients that read no structured content
    return data


def jpeg_of(block: Any) -> Image.Image:
    assert (block.type, block.mime_type) == ("image", "image/jpeg")
    image = Image.open(io.BytesIO(base64.b64decode(block.data)))
    assert image.format == "JPEG"
    return image


def error_of(result: Any) -> str:
    assert result.is_error
    (block,) = result.content
    return str(block.text)


def test_every_tool_describes_itself(tools: ImageTools) -> None:
    async def work(client: Client) -> None:
        listed = (await client.list_tools()).tools
        assert {tool.name for tool in listed} == READING
        for tool in listed:
            assert tool.description
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint
            assert tool.annotations.title
            assert tool.input_schema["additionalProperties"] is False
            for schema in (tool.input_schema, tool.output_schema):
                assert schema is not None
                assert schema["type"] == "object"
                for name, field in schema["properties"].items():
                    assert field.get("description"), f"{tool.name}: {name}"
        assert client.server_info.name == "edje-qdrant"
        assert "search_images" in (client.instructions or "")

    use(tools, work)


def test_search_finds_what_the_retriever_finds(tools: ImageTools, tmp_path: Path) -> None:
    expected = tools.retriever.search("a red circle", top_k=3)

    async def work(client: Client) -> None:
        found = data_of(
            await client.call_tool("search_images", {"query": "a red circle", "top_k": 3})
        )
        assert [image["image_id"] for image in found["images"]] == [h.image_id for h in expected]
        first = found["images"][0]
        assert first["path"] == expected[0].payload["path"]
        assert first["score"] == expected[0].score
        assert first["probability"] is None
        assert first["fields"] == {}
        assert found["candidates"] == found["scored"] == 6
        asked = await client.call_tool(
            "search_images",
            {"query": "red", "top_k": 2, "fields": ["width", "no such"], "thumbnails": True},
        )
        assert data_of(asked)["images"][0]["fields"] == {"width": 50}
        assert [block.type for block in asked.content] == ["text", "text", "image", "text", "image"]
        assert asked.content[1].text == f"1. {data_of(asked)['images'][0]['image_id']}"
        assert max(jpeg_of(asked.content[2]).size) <= 256
        none = await client.call_tool("search_images", {"query": "red", "filter": {"width": 51}})
        assert data_of(none)["images"] == []

    use(tools, work)


def test_similar_rerank_explain_and_thumbnail(tools: ImageTools) -> None:
    ids = [hit.image_id for hit in tools.retriever.search("red", top_k=6)]
    logits = tools.retriever.score("a blue circle", ids)

    async def work(client: Client) -> None:
        like = data_of(
            await client.call_tool("similar_images", {"image_ids": ids[:1], "unlike": ids[1:2]})
        )
        found = [image["image_id"] for image in like["images"]]
        assert sorted(found) == sorted(ids[2:])
        assert like["images"][0]["score"] is None
        by_text = await client.call_tool(
            "similar_images", {"image_ids": ids[:1], "query": "red", "top_k": 1}
        )
        assert data_of(by_text)["images"][0]["score"] is not None

        ranked = data_of(
            await client.call_tool(
                "rerank", {"query": "a blue circle", "image_ids": ids, "top_k": 4}
            )
        )
        order = sorted(range(6), key=lambda row: -logits[row])[:4]
        assert [image["index"] for image in ranked["images"]] == order
        assert [image["rank"] for image in ranked["images"]] == [1, 2, 3, 4]
        assert ranked["images"][0]["score"] == pytest.approx(float(logits[order[0]]))

        explained = await client.call_tool(
            "explain", {"query": "a red circle", "image_id": ids[0], "picture": True}
        )
        words = data_of(explained)["words"]
        assert [word["word"] for word in words] == ["a", "red", "circle"]
        assert all(0 <= word["x"] <= 1 for word in words if word["x"] is not None)
        jpeg_of(explained.content[-1])
        plain = await client.call_tool("explain", {"query": "red", "image_id": ids[0]})
        assert [block.type for block in plain.content] == ["text"]

        shown = await client.call_tool("get_thumbnail", {"image_id": ids[0], "size": 40})
        assert max(jpeg_of(shown.content[-1]).size) == 40
        assert data_of(shown)["image_id"] == ids[0]

        info = data_of(await client.call_tool("collection_info", {}))
        assert (info["name"], info["images"], info["calibrated"]) == ("images", 6, False)
        assert info["thumbnails"] is info["explains"] is True
        assert info["ingest_folders"] == []

    use(tools, work)


def test_errors_are_results_with_our_sentence(tools: ImageTools, tmp_path: Path) -> None:
    (hit,) = tools.retriever.search("red", top_k=1)
    unknown = "00000000-0000-0000-0000-000000000000"

    async def work(client: Client) -> None:
        for name, arguments, sentence in [
            ("search_images", {"query": "..."}, "contains no word; describe what an image shows"),
            ("search_images", {"query": "red", "min_score": "auto"}, "run edje-qdrant calibrate"),
            (
                "search_images",
                {"query": "red", "topk": 3},
                "has no argument 'topk'; it takes query",
            ),
            (
                "search_images",
                {"query": "red", "top_k": 101},
                "called wrongly: top_k: Input should",
            ),
            ("search_images", {}, "query: Field required"),
            ("search_images", {"query": "red", "filter": {"a": 1.5}}, "floats cannot be compared"),
            ("rerank", {"query": "red", "image_ids": [unknown]}, "are not in the collection"),
            ("similar_images", {"image_ids": ["x"]}, "'x' is not a UUID string"),
            ("get_thumbnail", {"image_id": unknown}, "give an image_id of a search's result"),
            ("ingest", {"path": str(tmp_path)}, "Unknown tool: ingest"),
        ]:
            assert sentence in error_of(await client.call_tool(name, arguments)), name
        Path(hit.payload["path"]).unlink()
        for name, more in (("get_thumbnail", {}), ("explain", {"query": "red"})):
            failed = await client.call_tool(name, {"image_id": hit.image_id, **more})
            assert "missing, unreadable, or not in the folder" in error_of(failed)
        pictures = await client.call_tool("search_images", {"query": "red", "thumbnails": True})
        assert any("cannot be shown" in b.text for b in pictures.content if b.type == "text")

    use(tools, work)


def test_a_fault_of_ours_is_not_told(
    tools: ImageTools, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(tools, "info", broken)

    async def work(client: Client) -> None:
        told = error_of(await client.call_tool("collection_info", {}))
        assert "swordfish" not in told
        assert "swordfish" in caplog.text

    use(tools, work)


def test_without_a_folder_nothing_is_shown(
    collection: ImageCollection, tiny_model: EDJEModel
) -> None:
    tools = ImageTools(TwoStageRetriever(collection, tiny_model), whole_paths=False)

    async def work(client: Client) -> None:
        found = data_of(await client.call_tool("search_images", {"query": "red", "top_k": 1}))
        assert "/" not in found["images"][0]["path"]
        image_id = found["images"][0]["image_id"]
        for name, more in (("get_thumbnail", {}), ("explain", {"query": "red"})):
            failed = await client.call_tool(name, {"image_id": image_id, **more})
            assert "--images FOLDER" in error_of(failed)
        info = data_of(await client.call_tool("collection_info", {}))
        assert info["thumbnails"] is info["explains"] is False

    use(tools, work)


def test_ingest_stays_in_its_folders(
    collection: ImageCollection, tiny_model: EDJEModel, tmp_path: Path, write_images: WriteImages
) -> None:
    inside, outside = tmp_path / "new", tmp_path / "private"
    write_images(inside, 2, seed=5)
    (secret,) = write_images(outside, 1, seed=6)
    (inside / "link.png").symlink_to(secret)
    (inside / "door").symlink_to(outside)
    (inside / "broken.png").write_bytes(b"no image")
    (inside / "list.jsonl").write_text(json.dumps({"path": str(secret)}))
    tools = ImageTools(TwoStageRetriever(collection, tiny_model), ingest=[inside])

    async def work(client: Client) -> None:
        (ingest,) = [t for t in (await client.list_tools()).tools if t.name == "ingest"]
        assert ingest.annotations is not None
        assert ingest.annotations.read_only_hint is False
        for path, sentence in [
            (outside, "is not in a folder whose images may be added"),
            (inside / ".." / "private", "is not in a folder whose images may be added"),
            (inside / "link.png", "is not in a folder whose images may be added"),
            (inside / "door", "is not in a folder whose images may be added"),
            (inside / "nothing", "there is nothing at"),
            (inside / "list.jsonl", "is no image file"),
        ]:
            failed = await client.call_tool("ingest", {"path": str(path)})
            assert sentence in error_of(failed)
        assert collection.count() == 6
        added = data_of(await client.call_tool("ingest", {"path": str(inside)}))
        assert (added["added"], added["skipped"], added["failed"]) == (2, 0, 2)
        reasons = {Path(each["path"]).name: each["reason"] for each in added["failures"]}
        assert "leads out of the folder" in reasons["link.png"]
        assert "broken.png" in reasons
        assert collection.count() == 8
        again = data_of(await client.call_tool("ingest", {"path": str(inside)}))
        assert (again["added"], again["skipped"]) == (0, 2)

    use(tools, work)


def test_folders_that_are_missing(collection: ImageCollection, tiny_model: EDJEModel) -> None:
    retriever = TwoStageRetriever(collection, tiny_model)
    with pytest.raises(ConfigError, match="--images nowhere is not a folder"):
        ImageTools(retriever, images=Path("nowhere"))
    with pytest.raises(ConfigError, match="--ingest-from nowhere is not a folder"):
        ImageTools(retriever, ingest=[Path("nowhere")])


def test_calls_run_one_at_a_time_beside_the_event_loop(
    tools: ImageTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = 0

    def slow() -> Any:
        nonlocal inside
        inside += 1
        assert inside == 1
        time.sleep(0.01)
        inside -= 1
        return info

    info = tools.info()
    monkeypatch.setattr(tools, "info", slow)

    async def work(client: Client) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(client.call_tool, "collection_info", {})

    use(tools, work)


def test_http_checks_host_origin_and_key(tools: ImageTools) -> None:
    pytest.importorskip("fastapi", reason="needs the extra web")
    from starlette.testclient import TestClient

    from edje_qdrant.web.metrics import Metrics
    from edje_qdrant.web.middleware import ServiceMiddleware
    from edje_qdrant.web.settings import ServiceSettings, allowed_hosts

    key = "k" * 16
    settings = ServiceSettings(api_keys=(key,), allowed_hosts=allowed_hosts("127.0.0.1", ()))
    app = ServiceMiddleware(
        create_server(tools).http_app(), settings=settings, metrics=Metrics(lambda: 0)
    )
    call = {
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "collection_info", "arguments": {}},
    }  # fmt: skip
    good = {
        "Authorization": f"Bearer {key}", "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2025-06-18",
    }  # fmt: skip
    with TestClient(app, base_url="http://127.0.0.1:8001") as client:
        answer = client.post("/mcp", json=call, headers=good)
        assert answer.status_code == 200, answer.text
        assert answer.json()["result"]["structuredContent"]["images"] == 6
        for headers, status in [
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": ""}, 401),
            ({"Host": "evil.example"}, 421),
            ({"Origin": "http://evil.example"}, 403),
        ]:
            refused = client.post("/mcp", json=call, headers={**good, **headers})
            assert refused.status_code == status, headers
        with_origin = {**good, "Origin": "http://127.0.0.1:8001"}
        assert client.post("/mcp", json=call, headers=with_origin).status_code == 200
        assert client.get("/elsewhere", headers=good).status_code == 404


# A server that loads a library which prints.
NOISY = """
import os
from edje_qdrant.cli import mcp
from edje_qdrant.integrations.mcp.tools import ImageTools
load, info = mcp.load_model, ImageTools.info
def noisy(*given):
    print("a warning on stdout")
    os.write(1, b"a line from a library in C\\n")
    return load(*given)
def loud(self):
    print("a warning of a tool")
    return info(self)
mcp.load_model, ImageTools.info = noisy, loud
from edje_qdrant.cli.app import main
main()
"""


def command(tmp_path: Path, *more: str) -> list[str]:
    index = ["--index", str(tmp_path / "index"), "--images", str(tmp_path / "images")]
    return ["-m", "edje_qdrant", "mcp", *index, "--device", "cpu", *more]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def closed(collection: ImageCollection, tiny_folder: Path) -> None:
    """The collection in its folder, for another process."""
    collection.close()


@pytest.mark.usefixtures("closed")
def test_a_child_process_speaks_the_protocol_alone(tmp_path: Path, tiny_folder: Path) -> None:
    arguments = command(tmp_path, "--model", str(tiny_folder))[2:]
    parameters = StdioServerParameters(
        command=sys.executable, args=["-c", NOISY, *arguments], env=environment(tmp_path)
    )

    async def run() -> None:
        with anyio.fail_after(120), (tmp_path / "log").open("w") as log:
            async with Client(stdio_client(parameters, errlog=log)) as client:
                assert {tool.name for tool in (await client.list_tools()).tools} == READING
                found = await client.call_tool("search_images", {"query": "a red circle"})
                assert len(data_of(found)["images"]) == 6
                assert data_of(await client.call_tool("collection_info", {}))["images"] == 6
                wrong = await client.call_tool("search_images", {"query": "?"})
                assert "contains no word" in error_of(wrong)

    anyio.run(run)
    told = (tmp_path / "log").read_text()
    for line in ("a warning on stdout", "a line from a library in C", "a warning of a tool"):
        assert line in told


class Child:
    """A server whose protocol is written by hand, to end it in several ways."""

    def __init__(self, arguments: list[str], **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def send(self, **message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.process.stdin.flush()

    def start(self) -> None:
        assert self.process.stdout is not None
        client = {"name": "test", "version": "1"}
        parameters = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
        self.send(id=1, method="initialize", params=parameters)
        assert json.loads(self.process.stdout.readline())["id"] == 1
        self.send(method="notifications/initialized")

    def end(self) -> tuple[int, str, str]:
        try:
            out, err = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
        return self.process.returncode, out, err


# A tool that never returns.
HANGING = """
import time
from edje_qdrant.integrations.mcp import tools
tools.ImageTools.info = lambda self: time.sleep(1000)
from edje_qdrant.cli.app import main
main()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("how", ["interrupt", "close", "vanish"])
@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_at_once(tmp_path: Path, tiny_folder: Path, how: str, busy: bool) -> None:
    arguments = command(tmp_path, "--model", str(tiny_folder))[2:]
    child = Child(["-c", HANGING, *arguments], env=environment(tmp_path))
    child.start()
    if busy:
        child.send(id=2, method="tools/call", params={"name": "collection_info", "arguments": {}})
        time.sleep(0.5)  # until the call has begun
    if how == "interrupt":
        child.process.send_signal(signal.SIGINT)
    if how == "vanish":
        assert child.process.stdout is not None
        child.process.stdout.close()
        child.process.stdout = None
    code, out, err = child.end()
    assert code == (130 if how == "interrupt" else 0), err
    answers = [json.loads(line) for line in (out or "").splitlines()]
    assert [answer["id"] for answer in answers] == ([2] if busy and how == "close" else [])
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.usefixtures("closed")
def test_over_http_with_the_sdk_client(tmp_path: Path, tiny_folder: Path) -> None:
    pytest.importorskip("fastapi", reason="needs the extra web")
    from service_process import free_port

    port = free_port()
    arguments = command(tmp_path, "--model", str(tiny_folder), "--http", "--port", str(port))
    child = Child(arguments, env=environment(tmp_path))
    assert child.process.stderr is not None

    async def run() -> None:
        for _ in range(600):
            try:
                await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
                break
            except OSError:
                await anyio.sleep(0.1)
        async with Client(f"http://127.0.0.1:{port}/mcp") as client:
            found = await client.call_tool("search_images", {"query": "a red circle"})
            assert data_of(found)["images"][0]["path"].startswith("picture-")

    try:
        anyio.run(run)
    finally:
        child.process.send_signal(signal.SIGINT)
        code, out, _ = child.end()
    assert (code, out) == (0, "")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--index", "nowhere"], "no collection 'images' at "),
        (["--index", "x", "--http", "--host", "0.0.0.0"], "EDJE_QDRANT_SERVICE_KEY"),
    ],
)
def test_what_cannot_be_served_is_refused(
    more: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from command_line import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDJE_QDRANT_SERVICE_KEY", raising=False)
    result = run("mcp", *more)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.strip().splitlines()
    assert sentence in line
