"""The service keeps to its own OpenAPI description, whatever it is sent."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

pytest.importorskip("schemathesis", reason="needs the extra dev")

import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from edje_qdrant.web import client_schemas, schemas

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


@pytest.fixture
def description(shared):
    return shared.get("/openapi.json").json()


def test_every_route_is_described(shared, description):
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), (path, method)
            error = operation["responses"].get("422", {}).get("content", {})
            if error:
                reference = error["application/json"]["schema"]["$ref"]
                assert reference == "#/components/schemas/ErrorBody", path


@pytest.mark.parametrize(
    "model",
    [
        schemas.SearchRequest,
        schemas.RecommendRequest,
        client_schemas.RerankRequest,
        client_schemas.EmbeddingsRequest,
    ],
)
def test_examples_are_of_the_form_they_show(description, model):
    for example in description["components"]["schemas"][model.__name__]["examples"]:
        model.model_validate(example)


def test_the_key_is_described_where_one_is_asked_for(serve):
    client = serve(api_keys=("k" * 20,))
    described = client.get("/openapi.json").json()
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_answers_are_as_described(serve):
    client = serve(ingest=True)
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    checked = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],
        )
        @given(case=operation.as_strategy())
        def send(case):
            response = case.call()
            case.validate_response(response, checks=CHECKS)

        send()
        checked += 1
    assert checked >= 13
