from __future__ import annotations

import base64
import inspect
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gallery_checks import TEXT, Gallery
from numpy.typing import NDArray
from PIL import Image
from rounding import float16_slack

from edje_qdrant.errors import ConfigError, EdjeError, ImageReadError, TokensNotFoundError
from edje_qdrant.integrations import cross_encoder
from edje_qdrant.integrations.cross_encoder import EDJECrossEncoder
from edje_qdrant.search.retriever import TwoStageRetriever

OTHER = "kites over the lake"


@pytest.fixture
def expected(gallery: Gallery) -> NDArray[np.float32]:
    tokens = gallery.model.encode_images([Image.open(path) for path in gallery.paths]).tokens
    return np.stack([gallery.model.score(text, tokens) for text in (TEXT, OTHER)])


def test_pictures_are_ranked(gallery: Gallery, expected: NDArray[np.float32]) -> None:
    encoder = EDJECrossEncoder(gallery.model)
    pictures: list[Any] = [*gallery.paths]
    pictures[1], pictures[2] = str(pictures[1]), Image.open(pictures[2])
    ranked = encoder.rank(TEXT, pictures, batch_size=5)
    order = np.argsort(-expected[0], kind="stable")
    assert [found["corpus_id"] for found in ranked] == order.tolist()
    assert [found["score"] for found in ranked] == pytest.approx(
        expected[0][order], abs=float16_slack(expected)
    )
    assert all(set(found) == {"corpus_id", "score"} for found in ranked)
    shown = encoder.rank(TEXT, pictures, top_k=3, return_documents=True)
    assert [found["text"] for found in shown] == [pictures[row] for row in order[:3]]
    assert encoder.rank(TEXT, []) == []


def test_pairs_are_scored_in_order_and_a_picture_encoded_once(
    gallery: Gallery, expected: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, seen = gallery.model.encode_pixels, []
    monkeypatch.setattr(
        gallery.model, "encode_pixels", lambda p: (seen.append(len(p)), encode(p))[1]
    )
    monkeypatch.setattr(cross_encoder, "_PAIRS", 3)
    pairs = [(text, path) for path in gallery.paths for text in (OTHER, TEXT)]
    scores = EDJECrossEncoder(gallery.model).predict([*pairs, pairs[4]], batch_size=8)
    assert scores.dtype == np.float32
    wanted = [*expected[::-1].T.ravel(), expected[1, 2]]
    assert scores == pytest.approx(wanted, abs=float16_slack(wanted))
    assert seen == [8, 4]
    assert EDJECrossEncoder(gallery.model).predict([]).shape == (0,)


def test_pictures_of_a_collection_are_not_encoded_again(
    gallery: Gallery,
    retriever: TwoStageRetriever,
    expected: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = {hit.payload["path"]: hit.image_id for hit in retriever.search(TEXT, top_k=12)}
    encoder = EDJECrossEncoder(gallery.model, collection=retriever)
    mixed: list[Any] = [ids[str(path)] for path in gallery.paths]
    mixed[3] = gallery.paths[3]
    scores = encoder.predict([(TEXT, p) for p in mixed])
    assert scores == pytest.approx(expected[0], abs=float16_slack(expected))
    monkeypatch.setattr(gallery.model, "start_encoding", None)
    del mixed[3]
    assert len(encoder.rank(OTHER, mixed)) == 11
    with pytest.raises(TokensNotFoundError):
        encoder.rank(TEXT, ["00000000-0000-4000-8000-000000000000"])


def test_what_cannot_be_scored_is_refused(gallery: Gallery, tmp_path: Path) -> None:
    encoder = EDJECrossEncoder(gallery.model)
    for call, message in (
        (lambda: encoder.rank("!", gallery.paths), "no word"),
        (lambda: encoder.rank(TEXT, gallery.paths, top_k=0), "top_k is 0"),
        (lambda: encoder.rank(TEXT, gallery.paths, batch_size=0), "batch_size is 0"),
        (lambda: encoder.rank(TEXT, [3]), "no collection"),
        (lambda: encoder.rank(TEXT, [None]), "not a NoneType"),  # type: ignore[list-item]
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    with pytest.raises(ImageReadError, match=r"none\.png"):
        encoder.rank(TEXT, [tmp_path / "none.png"])
    # Without a collection an id is nothing but a name that no file has.
    with pytest.raises(ImageReadError):
        encoder.rank(TEXT, ["00000000-0000-4000-8000-000000000000"])


def test_a_model_is_loaded_by_name(tiny_folder: Path, gallery: Gallery) -> None:
    encoder = EDJECrossEncoder(tiny_folder, device="cpu")
    assert len(encoder.rank(TEXT, gallery.paths)) == 12


def test_a_pair_has_many_shapes(gallery: Gallery, expected: NDArray[np.float32]) -> None:
    encoder, path = EDJECrossEncoder(gallery.model), gallery.paths[3]
    image = Image.open(path).convert("RGB")
    uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    array = np.asarray(image)
    images = [path, str(path), image, uri, array, array.transpose(2, 0, 1), torch.tensor(array)]
    pairs: list[Any] = [(TEXT, each) for each in images]
    pairs += [[TEXT, {"image": each}] for each in images]
    pairs += [({"text": TEXT}, {"image": image}), ({"image": image}, TEXT), (image, TEXT)]
    pairs += [{"text": TEXT, "image": uri}, (uri, TEXT), (str(path), {"text": TEXT})]
    slack = float16_slack(expected)
    assert encoder.predict(pairs) == pytest.approx([expected[0, 3]] * len(pairs), abs=slack)
    for pair in (pairs[0], pairs[7], *pairs[-6:]):  # each of them alone
        score = encoder.predict(pair)
        assert isinstance(score, np.float32)
        assert score == pytest.approx(expected[0, 3], abs=slack)
    table = np.array([[TEXT, str(path)], [OTHER, str(path)]])
    assert encoder.predict(table) == pytest.approx(expected[:, 3], abs=slack)
    assert encoder.predict(table[1]) == pytest.approx(expected[1, 3], abs=slack)
    both = [{"text": TEXT, "image": path}, {"text": OTHER, "image": path}]
    assert encoder.predict(both) == pytest.approx(expected[:, 3], abs=slack)


def test_texts_are_ranked_by_an_image(gallery: Gallery, expected: NDArray[np.float32]) -> None:
    encoder = EDJECrossEncoder(gallery.model)
    image = Image.open(gallery.paths[5])
    ranked = encoder.rank({"image": image}, [TEXT, OTHER], return_documents=True)
    order = np.argsort(-expected[:, 5], kind="stable")
    assert [found["corpus_id"] for found in ranked] == order.tolist()
    assert [found["text"] for found in ranked] == [(TEXT, OTHER)[row] for row in order]


def test_scores_in_every_form(
    gallery: Gallery, expected: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = EDJECrossEncoder(gallery.model)
    pairs = [(TEXT, path) for path in gallery.paths]
    array = encoder.predict(pairs, None, None, 32, False)  # in sentence-transformers' order
    tensor = encoder.predict(pairs, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.tolist() == array.tolist()
    several = encoder.predict(pairs, convert_to_numpy=False)
    assert isinstance(several, list)
    assert [each.item() for each in several] == array.tolist()
    assert encoder.predict(pairs[0], convert_to_tensor=True).shape == ()
    single = encoder.predict(pairs[0], convert_to_numpy=False)
    assert isinstance(single, torch.Tensor)
    assert single.item() == pytest.approx(float(array[0]), abs=float16_slack(array))
    assert encoder.predict(pairs, apply_softmax=True).tolist() == array.tolist()
    assert encoder.predict([], convert_to_tensor=True).shape == (0,)
    assert encoder.predict(pairs, device="cpu").tolist() == array.tolist()
    sigmoid = encoder.predict(pairs, activation_fn=torch.nn.Sigmoid())
    assert sigmoid == pytest.approx(1 / (1 + np.exp(-array)), abs=1e-6)
    ranked = encoder.rank(TEXT, gallery.paths, activation_fn=torch.sigmoid, top_k=2)
    assert [found["score"] for found in ranked] == sorted(sigmoid.tolist(), reverse=True)[:2]
    by_default = EDJECrossEncoder(gallery.model, activation_fn=torch.nn.Sigmoid())
    assert by_default.predict(pairs).tolist() == sigmoid.tolist()
    assert capsys.readouterr().err == ""
    encoder.rank(TEXT, gallery.paths, show_progress_bar=True)
    assert "12/12" in capsys.readouterr().err
    logging.getLogger(cross_encoder.__name__).setLevel(logging.INFO)
    try:
        encoder.predict(pairs)
    finally:
        logging.getLogger(cross_encoder.__name__).setLevel(logging.NOTSET)
    assert "12/12" in capsys.readouterr().err


def test_prompts_stand_before_texts(gallery: Gallery, expected: NDArray[np.float32]) -> None:
    encoder = EDJECrossEncoder(
        gallery.model, prompts={"kites": "kites over "}, default_prompt_name="kites"
    )
    plain = EDJECrossEncoder(gallery.model)
    pairs = [("the lake", path) for path in gallery.paths]
    expected_scores = pytest.approx(expected[1], abs=float16_slack(expected))
    assert encoder.predict(pairs) == expected_scores
    assert encoder.predict(pairs, "kites") == expected_scores
    assert plain.predict(pairs, prompt="kites over ") == expected_scores
    assert encoder.predict([(OTHER, path) for path in gallery.paths], prompt="") == expected_scores
    best = encoder.rank("the lake", gallery.paths, prompt_name="kites", top_k=1)[0]
    assert best["corpus_id"] == int(np.argmax(expected[1]))
    for call, message in (
        (lambda: encoder.predict(pairs, prompt_name="boats"), "no prompt 'boats'.*'kites'"),
        (lambda: plain.predict(pairs, prompt_name="kites"), "prompts has none"),
        (lambda: encoder.predict(pairs, "kites", "over "), "give one"),
        (lambda: encoder.predict(pairs, prompt=3), "prompt is 3"),  # type: ignore[arg-type]
        (lambda: EDJECrossEncoder(gallery.model, default_prompt_name="x"), "no prompt 'x'"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_addresses_are_fetched_only_by_a_function_of_the_users(
    gallery: Gallery, expected: NDArray[np.float32]
) -> None:
    asked: list[str] = []

    def fetch(address: str) -> bytes:
        asked.append(address)
        return gallery.paths[2].read_bytes()

    address = "https://images.example.com/2"
    pairs = [(TEXT, address), (OTHER, address)]
    scores = EDJECrossEncoder(gallery.model, fetch=fetch).predict(pairs)
    assert scores == pytest.approx(expected[:, 2], abs=float16_slack(expected))
    assert asked == [address]
    with pytest.raises(ConfigError, match="addresses are not fetched; pass fetch="):
        EDJECrossEncoder(gallery.model).predict(pairs)


def test_what_is_no_pair_is_refused_by_name(gallery: Gallery) -> None:
    encoder, path = EDJECrossEncoder(gallery.model), gallery.paths[0]
    image = Image.new("RGB", (4, 4))
    for inputs, message in (
        ([(TEXT, path), 3], "pairs holds a int"),
        ([(TEXT, path, path)], "pairs holds a tuple"),
        ({"text": TEXT}, "pairs holds a dict with the keys 'text'"),
        ([(TEXT, {"text": "a", "image": path})], "keys 'text', 'image'.*one key"),
        ([(TEXT, {"audio": path})], "keys 'audio'"),
        ([(TEXT, {})], "no key"),
        ([(image, path)], "two images"),
        ([({"text": TEXT}, {"text": TEXT})], "two texts"),
        ([({"text": 3}, path)], "a pair's text is a int"),
        ([(3.5, path)], "a pair's text is a float"),
        ([(TEXT, np.zeros((4, 4), np.uint8))], r"not \(4, 4\) uint8"),
        ([(TEXT, np.zeros((4, 4, 3)))], "float64"),
        ([(TEXT, True)], "not a bool"),
        (3, "inputs is 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            encoder.predict(inputs)
    for uri in ("data:image/png,AAAA", "data:image/png;base64,!", "data:image/png;base64,AAAA"):
        with pytest.raises(ImageReadError, match="in a data URI"):
            encoder.predict([(TEXT, uri)])
    pairs = [(TEXT, path)]
    for options, message in (
        ({"device": "meta"}, "the model is on cpu"),
        ({"device": ["cuda:0", "cuda:1"]}, "device is"),
        ({"pool": {}}, "pool is for several processes"),
        ({"chunk_size": 3}, "chunk_size is for several processes"),
        ({"convert_to_tensor": "yes"}, "convert_to_tensor is a str"),
        ({"show_progress_bar": 3}, "show_progress_bar is 3"),
        ({"activation_fn": torch.mean}, r"makes \(\) of \(1,\) logits"),
    ):
        with pytest.raises(ConfigError, match=message):
            encoder.predict(pairs, **options)
        if "convert_to_tensor" not in options and "activation_fn" not in options:
            with pytest.raises(ConfigError, match=message):
                encoder.rank(TEXT, [path], **options)


def test_a_folder_for_sentence_transformers(
    gallery: Gallery, tmp_path: Path, expected: NDArray[np.float32]
) -> None:
    encoder = EDJECrossEncoder(
        gallery.model, prompts={"kites": "kites over "}, default_prompt_name="kites"
    )
    name = gallery.model.name_or_path
    try:
        encoder.save_pretrained(tmp_path / "saved")
    finally:
        gallery.model.name_or_path = name  # the model is shared with other tests
    written = json.loads((tmp_path / "saved" / "modules.json").read_text())
    assert [module["type"] for module in written] == [
        "edje_qdrant.integrations.sentence_transformers.EDJEModule"
    ]
    again = EDJECrossEncoder(tmp_path / "saved", device="cpu")
    scores = again.predict([("the lake", path) for path in gallery.paths])
    assert scores == pytest.approx(expected[1], abs=float16_slack(expected))
    other = EDJECrossEncoder(tmp_path / "saved", prompts={"a": "b"}, default_prompt_name="a")
    assert other.prompts == {"a": "b"}
    with pytest.raises(ConfigError, match="a folder cannot name"):
        EDJECrossEncoder(gallery.model, activation_fn=lambda x: x).save_pretrained(tmp_path / "no")
    (tmp_path / "saved" / "config_sentence_transformers.json").write_text("[")
    with pytest.raises(EdjeError, match=r"_transformers\.json cannot be read"):
        EDJECrossEncoder(tmp_path / "saved")


def test_the_arguments_are_in_sentence_transformers_order() -> None:
    """The names and the order of version 6.2; a test beside compares with the one installed."""
    common = ["prompt_name", "prompt", "batch_size", "show_progress_bar", "activation_fn"]
    last = ["device", "pool", "chunk_size"]
    assert [*inspect.signature(EDJECrossEncoder.predict).parameters][1:] == [
        "inputs", *common, "apply_softmax", "convert_to_numpy", "convert_to_tensor", *last,
    ]  # fmt: skip
    assert [*inspect.signature(EDJECrossEncoder.rank).parameters][1:] == [
        "query", "documents", "top_k", "return_documents", *common, *last,
    ]  # fmt: skip
