"""The page on Qdrant in production: commands, Python and figures; and the compose files."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import shlex
import uuid
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from command_line import run
from index_stand_in import StandIn
from PIL import Image
from qdrant_client import QdrantClient, models
from qdrant_client.http.api.snapshots_api import SyncSnapshotsApi

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.model import EDJEModel
from edje_qdrant.tokens.codecs import CODECS, ProductCodec, codec_for

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "qdrant-in-production.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", PAGE, re.DOTALL | re.MULTILINE)


def commands_of(block: str) -> list[str]:
    """Return the commands of a block, each on one line."""
    return re.sub(r"\\\n|\n(?=    )", "", dedent(block)).splitlines()


LINES = [line for language, block in BLOCKS for line in ([] if language else commands_of(block))]
COMMANDS = [line for line in LINES if line.startswith("edje-qdrant ")]
COMPOSE = [ROOT / "compose.yaml", *sorted((ROOT / "examples").glob("docker-compose*.yml"))]


def token_function() -> Any:
    (block,) = (block for language, block in BLOCKS if language == "python")
    names: dict[str, Any] = {}
    exec(compile(block, "qdrant-in-production.md", "exec"), names)
    return names["qdrant_token"]


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_the_commands_of_the_page_need_a_read_only_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    model = EDJEModel.from_pretrained("demo", device="cpu")
    token = token_function()("the-key", "images", 1)
    with StandIn(keys={"the-key": True, "read-only": False, token: False}) as server:
        monkeypatch.setenv("EDJE_QDRANT_API_KEY", "the-key")
        with ImageCollection.create(
            server.url, "images", model.contract(), api_key="the-key"
        ) as collection:
            ids = [str(uuid.UUID(int=number)) for number in range(3)]
            collection.add(ids, model.encode_images(images), [{}, {}, {}])
        # Strict mode as the page sets it: no command is refused, or warns.
        change = next(line for line in LINES if "-X PATCH" in line)
        strict = json.loads(shlex.split(change)[-1])["strict_mode_config"]
        writer = QdrantClient(url=server.url, api_key="the-key", check_compatibility=False)
        config = models.StrictModeConfig(**strict)
        assert writer.update_collection("images", strict_mode_config=config)
        writer.close()
        commands = [line for line in COMMANDS if "images-2" not in line]
        assert len(commands) == 3
        commands.append(
            f"edje-qdrant export --out {tmp_path / 'images.tar'} --url http://localhost:6333"
        )
        commands.append("edje-qdrant info --url http://localhost:6333")
        for key, chosen in (("read-only", commands[:1]), (token, commands)):
            monkeypatch.setenv("EDJE_QDRANT_API_KEY", key)
            for command in chosen:
                words = shlex.split(command.replace("http://localhost:6333", server.url))[1:]
                if words[0] == "serve":  # it would not end
                    words.append("--help")
                words = ["images" if word == "restored" else word for word in words]
                done = run(*words)
                assert done.exit_code == 0, (command, done.output)


def test_a_change_of_models_as_the_page_makes_it(tmp_path: Path, write_images: Any) -> None:
    write_images(tmp_path, 3)
    contract = EDJEModel.from_pretrained("demo", device="cpu").contract()
    moving = next(line for line in LINES if "/aliases" in line)
    actions = models.ChangeAliasesOperation(**json.loads(shlex.split(moving)[-1])).actions
    first = models.CreateAlias(collection_name="images-1", alias_name="images")
    with StandIn() as server:
        ImageCollection.create(server.url, "images-1", contract).close()
        commands = [line for line in COMMANDS if "images-2" in line]
        assert [line.split()[1] for line in commands] == ["ingest", "verify"]
        for command in commands:
            line = command.replace("http://localhost:6333", server.url)
            line = line.replace("IMAGES", str(tmp_path)).replace("NEW_MODEL", "demo")
            done = run(*shlex.split(line)[1:])
            assert done.exit_code == 0, (command, done.output)
        client = QdrantClient(url=server.url, check_compatibility=False)
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=first)])
        with ImageCollection.open(server.url, "images") as opened:
            client.update_collection_aliases(actions)
            assert opened.resolved_name == "images-1"
        with ImageCollection.open(server.url, "images") as opened:
            assert opened.resolved_name == "images-2"
            assert len(opened) == 3
        client.close()


def test_a_token_is_signed_and_expires() -> None:
    head, body, signature = token_function()("the key", "images", 30, "rw").split(".")

    def decoded(text: str) -> bytes:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

    assert json.loads(decoded(head)) == {"alg": "HS256", "typ": "JWT"}
    claims = json.loads(decoded(body))
    assert claims["access"] == [{"collection": "images", "access": "rw"}]
    signed = hmac.digest(b"the key", f"{head}.{body}".encode(), hashlib.sha256)
    assert decoded(signature) == signed


def test_the_requests_for_snapshots_are_those_of_qdrants_client() -> None:
    asked: list[tuple[str, str, Any]] = []

    class Client:
        def request(self, *, method: str, url: str, path_params: Any, **more: Any) -> None:
            query = "&".join(f"{name}={value}" for name, value in more["params"].items())
            asked.append((method, f"{url.format(**path_params)}?{query}", more.get("content")))

    requests = [shlex.split(line) for line in LINES if line.startswith("curl ")]
    requests = [words for words in requests if "snapshots" in " ".join(words)]
    (data,) = [words[words.index("-d") + 1] for words in requests if "-d" in words]
    recover = models.SnapshotRecover(**json.loads(data))
    api: Any = SyncSnapshotsApi(Client())  # type: ignore[arg-type]
    api.create_snapshot("images", wait=True)
    api.recover_from_snapshot("restored", wait=True, snapshot_recover=recover)
    assert [(method, url) for method, url, _ in asked] == [
        (words[words.index("-X") + 1], url.removeprefix("http://localhost:6333"))
        for words in requests
        for url in words
        if url.startswith("http://")
    ]


def test_the_table_of_bytes_is_arithmetic() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \| [\d.]+ MB \|$", PAGE, re.MULTILINE))
    totals = dict(re.findall(r"^\| `(\w+)` \| [\d,]+ \| ([\d.]+) MB \|$", PAGE, re.MULTILINE))
    assert set(rows) == set(CODECS)
    for name, shown in rows.items():
        codec = codec_for(name, 64, 384)
        nbytes = codec.nbytes
        assert isinstance(codec, ProductCodec) == name.startswith("pq")
        text = len(base64.b64encode(bytes(nbytes)))
        assert int(shown.replace(",", "")) == text
        assert float(totals[name]) == pytest.approx(text / 1e4, rel=0.05)


def test_all_compose_files_start_the_same_server() -> None:
    images = {
        image
        for path in COMPOSE
        for image in re.findall(r"image: (qdrant/qdrant:\S+)", path.read_text(encoding="utf-8"))
    }
    assert len(COMPOSE) == 4
    assert len(images) == 1
