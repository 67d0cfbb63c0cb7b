"""Routes about payload fields, filters as they are written, and texts to try."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from edje_qdrant.index.payload_fields import FieldSample, PayloadField
from edje_qdrant.search.options import NUM_CANDIDATES
from edje_qdrant.web.fields import Fields, suggestions

TEXT = "a red square"


@pytest.fixture
def client(shared):
    return shared


def found(answer) -> set[int]:
    assert answer.status_code == 200, answer.text
    data = answer.json()
    return {each["payload"]["page"] for each in data.get("hits") or data["pictures"]}


def by_text(client, where):
    return client.post("/v1/search", json={"text": TEXT, "top_k": 100, "where": where})


def by_image(client, where):
    path = next(iter(sorted((client.folder / "pictures").glob("*.png"))))
    files = {"file": ("a.png", path.read_bytes(), "image/png")}
    data = {"top_k": "100", "where": where}
    return client.post("/v1/search/image", files=files, data=data)


def by_example(client, where):
    body = {"liked": client.ids[:1], "top_k": 100, "where": where}
    return client.post("/v1/recommend", json=body)


def listed(client, where):
    return client.get("/v1/images", params={"limit": 100, "where": where})


@pytest.mark.parametrize("way", [by_text, by_image, by_example, listed])
def test_conditions_are_written_as_on_the_command_line(client, way):
    wanted = {n for n in range(12) if n >= 8 and n % 2 == 0}
    missing = {0} if way is by_example else set()  # the example itself
    assert found(way(client, ["page>=8", "album=a"])) == wanted
    assert found(way(client, ["page = 0", "page=3"])) == {0, 3} - missing
    assert found(way(client, [])) == {*range(12)} - missing
    answer = way(client, ["page>=soon"])
    assert answer.status_code == 400
    assert "give a number, or a date" in answer.json()["message"]


def test_one_form_of_a_filter_is_enough(client):
    body = {"text": TEXT, "where": ["page=1"], "filter": {"page": 1}}
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == 400
    assert answer.json()["message"] == "give one of filter, qdrant_filter and where"


def test_fields_and_values(client):
    answer = client.get("/v1/fields").json()
    assert (answer["images"], answer["complete"]) == (12, True)
    fields = {each["name"]: each for each in answer["fields"]}
    assert fields["album"] == {"name": "album", "kinds": ["keyword"], "images": 12}
    assert fields["page"]["kinds"] == ["integer"]
    answer = client.get("/v1/fields/values", params={"field": "album"}).json()
    assert answer == {
        "field": "album",
        "values": [{"value": "a", "images": 6}, {"value": "b", "images": 6}],
        "counted": True,
    }
    answer = client.get("/v1/fields/values", params={"field": "unknown"}).json()
    assert answer["values"] == []
    assert client.get("/v1/fields/values", params={"field": "_edje"}).status_code == 400
    # Stored with the folders above the served one.
    for field in ("path", "other_paths", "video", "document"):
        answer = client.get("/v1/fields/values", params={"field": field}).json()
        assert answer == {"field": field, "values": [], "counted": False}


def test_values_come_from_a_payload_index(serve):
    client = serve()
    index = client.retriever.collection.index
    assert index.facet("album") is None
    index.create_payload_index("album", "keyword")
    answer = client.get("/v1/fields/values", params={"field": "album"}).json()
    assert [each["images"] for each in answer["values"]] == [6, 6]
    assert answer["counted"]


def test_conditions_that_find_nothing_say_why(client):
    where = ["albun=a", "album=2020", "page>=soon", "page>=3", "pgae=1", "album=zzz"]
    problems = client.post("/v1/filter/check", json={"where": where}).json()["problems"]
    assert [(each["where"], each["kind"], each["nearest"]) for each in problems] == [
        ("albun=a", "unknown", "album"),
        ("album=2020", "type", None),
        ("page>=soon", "refused", None),
        ("pgae=1", "unknown", "page"),
    ]
    assert problems[0]["message"] == "no image has a field 'albun'; did you mean 'album'?"
    assert client.post("/v1/filter/check", json={"where": []}).json() == {"problems": []}


def test_a_filter_that_strict_mode_refuses_names_the_index(tiny_model, monkeypatch):
    from qdrant_client import QdrantClient

    from edje_qdrant.collection.collection import ImageCollection
    from edje_qdrant.errors import ConfigError

    message = "it has no payload index; the collection is in strict mode: create_payload_index"

    def refuse(*_: Any, **__: Any) -> None:
        raise ConfigError(message)

    client = QdrantClient(":memory:")
    with ImageCollection.create(client, "images", tiny_model.contract()) as collection:
        monkeypatch.setattr(collection.index, "scroll", refuse)
        fields = Fields()
        monkeypatch.setattr(fields, "sample", lambda _: FieldSample({}, 0, complete=True))
        with pytest.raises(ConfigError, match="create_payload_index"):
            fields.problems(collection, {"album": "a"})


def test_a_sample_is_read_once_in_a_while(client, monkeypatch):
    fields, collection = Fields(), client.retriever.collection
    first = fields.sample(collection)
    assert fields.sample(collection) is first
    assert fields.values(collection, "album")[0] == [("a", 6), ("b", 6)]
    monkeypatch.setattr("edje_qdrant.web.fields._KEPT", -1)
    later = Fields()
    assert later.sample(collection) is not later.sample(collection)


def sample_of(**fields: list[Any]) -> FieldSample:
    made = {}
    for name, values in fields.items():
        counts = Counter((type(value).__name__, value) for value in values)
        made[name] = PayloadField(name, len(values), Counter(keyword=len(values)), counts)
    return FieldSample(made, 10, complete=True)


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({}, []),
        ({"path": ["a/b.png"], "album": ["x"], "year": [2020], "camera": ["FP5"]}, []),
        ({"caption": ["a dog in  the snow", "IMG_2020.jpg", "b"]}, ["a dog in the snow"]),
        ({"title": ["Scan 20240104 page", "http://a b", "<b>x y</b>", "a\x07 b"]}, []),
        ({"tags": ["dog", "dog", "snow", "12", "x1"]}, ["dog", "snow"]),
        ({"tags": ["dog"], "caption": ["a cat asleep"]}, ["a cat asleep", "dog"]),
        ({"caption": ["a dog in the snow"] * 3, "description": [True, 7]}, ["a dog in the snow"]),
    ],
)
def test_texts_to_try_are_captions_and_keywords(fields, texts):
    assert suggestions(sample_of(**fields)) == texts


def test_at_most_five_texts_short_ones_first():
    long = "a very long caption with more words than the others have"
    short = [f"a {word} dog" for word in ("red", "blue", "old", "small", "wet", "loud")]
    found = suggestions(sample_of(caption=[long, *short]))
    assert len(found) == 5
    assert long not in found


def test_the_service_tells_its_defaults(client, serve):
    info = client.get("/v1/collection").json()
    assert (info["num_candidates"], info["model_note"]) == (NUM_CANDIDATES, None)
    assert client.get("/v1/suggestions").json() == {"texts": []}
    assert serve(max_candidates=50).get("/v1/collection").json()["num_candidates"] == 50


def test_the_bundled_model_says_what_it_does_not_know():
    from edje_qdrant.model.named import model_note

    assert model_note("demo") == "the model 'demo' knows only drawn shapes"
    assert model_note("shahafw/edje-vl-image-retrieval-reranker") is None
    assert model_note(None) is None


def test_captions_of_a_collection_are_suggested(serve):
    client = serve()
    collection = client.retriever.collection
    collection.update_payload({client.ids[0]: {"caption": "a red square on the left"}})
    assert client.get("/v1/suggestions").json() == {"texts": ["a red square on the left"]}
