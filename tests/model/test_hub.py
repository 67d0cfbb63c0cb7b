"""Upload to and download from a hub, with the code of huggingface_hub on this side."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_stand_in import TOKEN, HubStandIn, use_hub
from huggingface_hub import constants
from PIL import Image
from tiny_edje import build_tiny_model

from edje_qdrant.encoders import SiglipEncoder, pretrained_encoder
from edje_qdrant.encoders import hub as hub_module
from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.integrations.cross_encoder import EDJECrossEncoder
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.calibration import Calibration

# huggingface_hub itself uploads by a form of its HTTP client that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CPU = {"device": "cpu"}
CALIBRATION = Calibration(1.5, -2.0, 1.333, -1.0, 0.5, 1.0, None, 20, 400, "held-out shapes")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with HubStandIn() as server:
        use_hub(server.url, tmp_path / "cache", monkeypatch)
        yield server
        huggingface_hub.close_session()


def test_a_model_that_was_pushed_is_loaded_again(hub: HubStandIn, tmp_path: Path) -> None:
    model = build_tiny_model()
    model.calibration = CALIBRATION
    url = model.push_to_hub(
        "someone/edje", token=TOKEN, commit_message="First", license="mit", tags=["shapes"]
    )
    assert url.startswith(f"{hub.url}/")
    assert "/commit/" in url
    assert hub.repositories["someone/edje"].messages == ["First"]
    again = EDJEModel.from_pretrained("someone/edje", **CPU)
    assert again.name_or_path == again.contract().model == "someone/edje"
    assert again.contract().adapter_hash == model.contract().adapter_hash
    assert again.calibration == CALIBRATION
    assert model.name_or_path is None  # a temporary folder is no name

    # The next commit has other weights and no calibration; the old revision stays.
    first = hub.repositories["someone/edje"].branches["main"]
    other = build_tiny_model(seed=1)
    other.push_to_hub("someone/edje", token=TOKEN)
    assert "calibration.json" not in hub.files("someone/edje")
    main = EDJEModel.from_pretrained("someone/edje", **CPU)
    assert main.contract().adapter_hash == other.contract().adapter_hash
    for old in (
        EDJEModel.from_pretrained("someone/edje", revision=first, **CPU),
        EDJEModel.from_pretrained(f"someone/edje@{first}", **CPU),
    ):
        assert old.contract().adapter_hash == model.contract().adapter_hash
        assert old.name_or_path == f"someone/edje@{first}"


def test_branches_private_models_and_tokens(hub: HubStandIn, tmp_path: Path) -> None:
    model = build_tiny_model()
    model.push_to_hub("someone/secret", private=True, revision="v2", token=TOKEN, dtype="float16")
    assert hub.repositories["someone/secret"].private
    assert "config.json" not in hub.files("someone/secret", "main")
    with pytest.raises(CheckpointError, match="does not exist, or it is private"):
        EDJEModel.from_pretrained("someone/secret@v2", token=False, **CPU)
    own = tmp_path / "own cache"
    found = EDJEModel.from_pretrained(
        "someone/secret", revision="v2", token=TOKEN, cache_dir=own, dtype="bfloat16", **CPU
    )
    assert found.adapter.query.dtype == torch.bfloat16
    assert (own / "models--someone--secret").is_dir()
    asked = len(hub.requests)
    cached = EDJEModel.from_pretrained(
        "someone/secret@v2", cache_dir=own, local_files_only=True, **CPU
    )
    assert cached.contract() == found.contract()
    assert len(hub.requests) == asked
    with pytest.raises(CheckpointError, match="local_files_only allows no download"):
        EDJEModel.from_pretrained("someone/secret@v2", local_files_only=True, **CPU)
    with pytest.raises(CheckpointError, match="has no such revision"):
        EDJEModel.from_pretrained("someone/secret", revision="v3", token=TOKEN, **CPU)


def test_uploads_that_are_refused(hub: HubStandIn) -> None:
    model = build_tiny_model()
    with pytest.raises(CheckpointError, match=r"cannot upload .* status 401: token="):
        model.push_to_hub("someone/edje", token="hf_wrong")
    with pytest.raises(ConfigError, match="give owner/name"):
        model.push_to_hub("a/b/c", token=TOKEN)
    with pytest.raises(ConfigError, match="dtype is 'int8'"):
        model.push_to_hub("someone/edje", token=TOKEN, dtype="int8")
    with pytest.raises(ConfigError, match="tags is the text"):
        model.push_to_hub("someone/edje", token=TOKEN, tags="shapes")
    assert not hub.repositories


def test_the_card_tells_what_the_folder_records(hub: HubStandIn, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "model"
    model = build_tiny_model()
    model.calibration = CALIBRATION
    model.save_pretrained(folder)
    (folder.parent / "recipe.json").write_text('{"seed": 7}')
    lines = [{"step": 1, "loss": 2.5}, {"step": 2, "R@1": 0.61}, {"step": 3, "R@1": 0.6}]
    (folder.parent / "training.jsonl").write_text("\n".join(map(json.dumps, lines)))
    EDJEModel.from_pretrained(folder, **CPU).push_to_hub(
        "someone/edje", token=TOKEN, license="mit", tags=["shapes"]
    )
    card = hub.files("someone/edje")["README.md"].decode()
    _, head, body = card.split("---\n", 2)
    assert head.splitlines()[:2] == ["library_name: edje-qdrant", 'license: "mit"']
    assert '- "edje"' in head
    assert '- "shapes"' in head
    assert 'EDJEModel.from_pretrained("someone/edje")' in body
    assert '"seed": 7' in body
    assert '"R@1": 0.61' in body
    assert "2.5" not in body
    assert "400 pairs of 20 queries (held-out shapes)" in body
    assert f"{model.config.num_tokens} of {model.config.token_dim} numbers" in body
    for title in ("How to use", "Sizes", "Figures", "Recipe", "Limits", "Licence"):
        assert f"\n## {title}\n" in body
    build_tiny_model().push_to_hub("someone/edje", token=TOKEN)
    bare = hub.files("someone/edje")["README.md"].decode()
    assert "license:" not in bare
    assert bare.count("Nothing is recorded with this model.") == 2
    build_tiny_model().push_to_hub("someone/edje", token=TOKEN, card="# My own")
    assert hub.files("someone/edje")["README.md"] == b"# My own"


def test_the_card_of_the_bundled_model(hub: HubStandIn) -> None:
    EDJEModel.from_pretrained("demo", **CPU).push_to_hub("someone/demo", token=TOKEN)
    card = hub.files("someone/demo")["README.md"].decode()
    assert '"pictures": 100000' in card
    assert '"R@1": 0.86' in card


def test_encoders_by_revision(hub: HubStandIn, tmp_path: Path) -> None:
    encoder = build_tiny_model().encoder
    assert isinstance(encoder, SiglipEncoder)
    encoder.save(tmp_path / "siglip")
    encoder.siglip.save_pretrained(tmp_path / "siglip")
    api = huggingface_hub.HfApi(token=TOKEN)
    api.create_repo("someone/siglip")
    api.create_branch("someone/siglip", branch="v1")
    api.upload_folder(repo_id="someone/siglip", folder_path=tmp_path / "siglip", revision="v1")
    options = {"cache_dir": tmp_path / "own", "token": TOKEN}
    for found in (
        pretrained_encoder("someone/siglip", revision="v1", **options),  # type: ignore[arg-type]
        pretrained_encoder("someone/siglip@v1", cache_dir=tmp_path / "own", local_files_only=True),
    ):
        assert found.weights_hash == encoder.weights_hash
    with pytest.raises(
        CheckpointError, match="on the hub is no settings of a siglip model: it has none"
    ):
        pretrained_encoder("someone/siglip", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="are not for 'open_clip:ViT-B-32@openai'"):
        pretrained_encoder("open_clip:ViT-B-32@openai", revision="v1")


def test_rerankers_by_revision(hub: HubStandIn, tmp_path: Path) -> None:
    model = build_tiny_model()
    model.push_to_hub("someone/edje", revision="v1", token=TOKEN)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    expected = EDJECrossEncoder(model.place("cpu", None)).predict([("red", tmp_path / "red.png")])
    options = {"revision": "v1", "cache_dir": tmp_path / "own", "token": TOKEN, **CPU}
    found = EDJECrossEncoder("someone/edje", **options)  # type: ignore[arg-type]
    assert found.predict([("red", tmp_path / "red.png")]) == pytest.approx(expected)
    again = EDJECrossEncoder(
        "someone/edje@v1", cache_dir=tmp_path / "own", local_files_only=True, **CPU
    )
    assert again.predict([("red", tmp_path / "red.png")]) == pytest.approx(expected)
    with pytest.raises(ConfigError, match="are for a model that is loaded here"):
        EDJECrossEncoder(model, revision="v1")
    rerankers = pytest.importorskip("edje_qdrant.integrations.rerankers")
    with pytest.raises(CheckpointError, match="has no such revision"):
        rerankers.EDJERanker("someone/edje", revision="v2")


@pytest.fixture
def black_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        use_hub(url, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr(hub_module, "_ANSWER_SECONDS", 0.2)
        monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
        yield
        huggingface_hub.close_session()


@pytest.mark.usefixtures("black_hole")
@pytest.mark.parametrize("name", ["someone/edje", "shahafw/edje-vl-image-retrieval-reranker"])
def test_a_hub_that_does_not_answer_is_asked_once(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"the cache has no copy of it, and the hub at "):
        EDJEModel.from_pretrained(name, **CPU)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        pretrained_encoder(name)
    with pytest.raises(CheckpointError, match="cannot upload the model"):
        build_tiny_model().push_to_hub(name, token=TOKEN)


def test_no_network_is_told_without_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        use_hub(f"http://127.0.0.1:{unused.getsockname()[1]}", tmp_path, monkeypatch)
        for name in ("someone/edje", "shahafw/edje-vl-image-retrieval-reranker"):
            with pytest.raises(CheckpointError, match="cannot be reached"):
                EDJEModel.from_pretrained(name, **CPU)
    assert slept == []


def test_what_was_downloaded_is_used_without_a_network(
    hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_tiny_model().push_to_hub("someone/edje", token=TOKEN)
    online = EDJEModel.from_pretrained("someone/edje", **CPU)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        use_hub(f"http://127.0.0.1:{unused.getsockname()[1]}", tmp_path / "cache", monkeypatch)
        offline = EDJEModel.from_pretrained("someone/edje", **CPU)
    assert offline.contract() == online.contract()


def test_packages_that_download_by_themselves_are_put_offline(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_module.offline_if_unreachable(True):
        assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with hub_module.offline_if_unreachable(False):
        assert not constants.HF_HUB_OFFLINE
    with hub_module.offline_if_unreachable(True):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_options_that_do_not_fit(tmp_path: Path, tiny_folder: Path) -> None:
    refused = [
        ({"revision": 3}, "revision is a int"),
        ({"revision": ""}, "revision is empty"),
        ({"cache_dir": 3}, "cache_dir is a int"),
        ({"token": 3}, "token is a int"),
        ({"local_files_only": "yes"}, "local_files_only is 'yes'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ]
    for options, message in refused:
        with pytest.raises(ConfigError, match=message):
            EDJEModel.from_pretrained("someone/edje", **options)  # type: ignore[arg-type]
    for name in (str(tiny_folder), "demo"):
        with pytest.raises(ConfigError, match=r"has no revisions|leave revision out"):
            EDJEModel.from_pretrained(name, revision="v1")
    with pytest.raises(ConfigError, match="names the revision 'v1', and revision is 'v2'"):
        EDJEModel.from_pretrained("someone/edje@v1", revision="v2")


@pytest.mark.slow
def test_the_command_line_takes_a_model_of_the_hub(
    hub: HubStandIn, tmp_path: Path, write_images: object
) -> None:
    build_tiny_model().push_to_hub("someone/edje", revision="v1", token=TOKEN)
    write_images(tmp_path / "images", 3)  # type: ignore[operator]
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "edje_qdrant"]
    for arguments in (
        ["ingest", str(tmp_path / "images"), "--index", str(tmp_path / "i"), "--model",
         "someone/edje@v1"],
        ["search", "red", "--index", str(tmp_path / "i"), "--json"],
    ):  # fmt: skip
        done = subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["hits"]) == 3
