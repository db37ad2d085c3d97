"""S10: the OpenAPI document is valid and complete, and its examples match its schemas."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from services.gateway import examples
from services.gateway.messenger.codes import is_messenger
from services.gateway.messenger.declaration import TAG
from services.gateway.routes import about, all_routes
from services.sandbox.movies import Catalogue
from services.sandbox.users import Directory
from shared.contracts.clients import NewClient
from shared.contracts.events import Event
from shared.contracts.mailings import NewMailing
from shared.contracts.postings import Posting
from shared.contracts.schedule_requests import RetryCallbacks
from shared.contracts.schedules import ScheduleCallback
from shared.http.openapi import Body, document

URL = "https://example.com/webhook"
DOCUMENT = document(all_routes(URL), about("X-Service-Ticket"))
OPERATIONS = [
    (path, method, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
# The promised routes, written down independently of their declarations.
PROMISED = {
    ("get", "/v1/dead/{queue}"),
    ("get", "/v1/dead/{queue}/letters"),
    ("get", "/v1/dead/{queue}/letters/{letter_id}"),
    ("post", "/v1/dead/{queue}/redrive"),
    ("post", "/v1/dead/{queue}/discard"),
    ("get", "/v1/jobs"),
    ("get", "/v1/jobs/{id}"),
    ("delete", "/v1/jobs/{id}"),
    ("post", "/v1/endpoints"),
    ("get", "/v1/endpoints"),
    ("get", "/v1/endpoints/{id}"),
    ("patch", "/v1/endpoints/{id}"),
    ("delete", "/v1/endpoints/{id}"),
    ("post", "/v1/endpoints/{id}/rotate-secret"),
    ("post", "/v1/endpoints/{id}/test"),
    ("post", "/v1/endpoints/{id}/pause"),
    ("post", "/v1/endpoints/{id}/resume"),
    ("post", "/v1/endpoints/{id}/replay"),
    ("get", "/v1/endpoints/{id}/replays"),
    ("get", "/v1/endpoints/{id}/messages"),
    ("post", "/v1/messages"),
    ("get", "/v1/messages/{id}"),
    ("get", "/v1/messages/{id}/attempts"),
    ("post", "/v1/callbacks"),
    ("post", "/v1/add"),
    ("post", "/v1/callbacks/batch"),
    ("post", "/v1/callbacks/retry"),
    ("get", "/v1/callbacks"),
    ("get", "/v1/callbacks/{id}"),
    ("get", "/v1/callbacks/{id}/attempts"),
    ("get", "/v1/callbacks/{id}/timeline"),
    ("get", "/v1/attempts"),
    ("get", "/v1/targets"),
    ("post", "/v1/targets/pause"),
    ("post", "/v1/targets/resume"),
    ("post", "/v1/callbacks/replay"),
    ("post", "/v1/callbacks/{id}/replay"),
    ("get", "/v1/audit"),
    ("patch", "/v1/callbacks/{id}"),
    ("delete", "/v1/callbacks/{id}"),
    ("get", "/v1/groups/{group_key}/callbacks"),
    ("delete", "/v1/groups/{group_key}/callbacks"),
    ("get", "/v1/groups/{group_key}/callbacks/{event_key}"),
    ("post", "/v1/callbacks/{id}/run"),
    ("put", "/v1/groups/{group_key}/callbacks/{event_key}"),
    ("patch", "/v1/groups/{group_key}/callbacks/{event_key}"),
    ("delete", "/v1/groups/{group_key}/callbacks/{event_key}"),
    ("post", "/v1/events"),
    ("post", "/v1/postings"),
    ("get", "/v1/postings"),
    ("get", "/v1/postings/{id}"),
    ("get", "/v1/postings/{id}/messages"),
    ("get", "/v1/mailings/stats"),
    ("get", "/v1/mailings/{id}/stats"),
    ("get", "/v1/mailings/{id}/messages.csv"),
    ("post", "/v1/clients"),
    ("get", "/v1/clients"),
    ("get", "/v1/clients/{id}"),
    ("patch", "/v1/clients/{id}"),
    ("delete", "/v1/clients/{id}"),
    ("post", "/v1/clients/import"),
    ("post", "/v1/mailings"),
    ("get", "/v1/mailings"),
    ("post", "/v1/mailings/audience"),
    ("get", "/v1/mailings/{id}"),
    ("patch", "/v1/mailings/{id}"),
    ("delete", "/v1/mailings/{id}"),
    ("post", "/v1/mailings/{id}/start"),
    ("post", "/v1/mailings/{id}/pause"),
    ("post", "/v1/mailings/{id}/resume"),
    ("post", "/v1/mailings/{id}/cancel"),
    ("post", "/v1/mailings/{id}/test"),
    ("get", "/v1/mailings/{id}/messages"),
    ("post", "/users"),
    ("post", "/users/login"),
    ("post", "/users/logout"),
    ("post", "/messages"),
    ("post", "/events/callback/start"),
    ("post", "/events/callback/stop"),
    ("post", "/events/callback/test"),
    ("post", "/events/polling"),
    ("get", "/events/stream"),
}
PROBLEMS = [each for each in OPERATIONS if not is_messenger(each[0])]
CODED = [each for each in OPERATIONS if is_messenger(each[0])]


def test_s10_the_document_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_s10_exactly_the_promised_routes_are_documented() -> None:
    assert {(method, path) for path, method, _ in OPERATIONS} == PROMISED


def test_models_with_the_same_name_would_get_long_names() -> None:
    assert [name for name in DOCUMENT["components"]["schemas"] if "__" in name] == []


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("path", "method", "operation"), PROBLEMS)
def test_every_operation_accepts_both_ticket_headers_or_no_ticket(
    path: str, method: str, operation: Any
) -> None:
    assert operation["security"] == [{}, {"ticket": []}, {"bearer": []}], (path, method)


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_every_path_parameter_is_declared(path: str, method: str, operation: Any) -> None:
    in_path = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
    assert in_path == set(re.findall(r"{(\w+)}", path)), method


def test_only_the_body_of_a_replay_may_be_missing() -> None:
    optional = {
        operation["operationId"]
        for _, _, operation in OPERATIONS
        if not operation.get("requestBody", {}).get("required", True)
    }
    assert optional == {"replay_callback"}


@pytest.mark.parametrize(("path", "method", "operation"), PROBLEMS)
def test_every_error_response_is_a_problem(path: str, method: str, operation: Any) -> None:
    errors = {s: r for s, r in operation["responses"].items() if s >= "400"}
    assert errors.keys() >= {"401", "403", "422", "500", "503", "504"}, (path, method)
    assert ("requestBody" in operation) == ("408" in errors) == ("415" in errors)
    for response in errors.values():
        content = response["content"]["application/problem+json"]
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}


@pytest.mark.parametrize(("path", "method", "operation"), CODED)
def test_u5_every_error_of_the_messenger_has_a_code_with_an_example(
    path: str, method: str, operation: Any
) -> None:
    errors = {s: r for s, r in operation["responses"].items() if s >= "400"}
    assert errors.keys() >= {"422", "429", "500", "503", "504"}, (path, method)
    assert ("requestBody" in operation) == ("408" in errors) == ("415" in errors)
    assert ("401" in errors) == (path != "/users")
    for status, response in errors.items():
        content = response["content"]["application/json"]
        assert content["schema"] == {"$ref": "#/components/schemas/CodedError"}
        codes = {example["value"]["code"] for example in content["examples"].values()}
        assert codes, status
        assert codes <= set(range(-7, 0))


def test_u5_the_examples_show_each_code() -> None:
    shown = {
        example["value"]["code"]
        for _, _, operation in CODED
        for response in operation["responses"].values()
        for content in response["content"].values()
        for example in content.get("examples", {}).values()
        if "code" in example["value"]
    }
    assert shown == {10, *range(-7, 0)}


def test_u5_routes_of_the_messenger_take_a_user_s_token_in_place_of_a_ticket() -> None:
    open_to_anyone = {path for path, _, each in CODED if each["security"] == [{}]}
    assert open_to_anyone == {"/users", "/users/login"}
    others = [each for path, _, each in CODED if path not in open_to_anyone]
    assert all(each["security"] == [{}, {"token": []}] for each in others)


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_finding_d7_no_request_has_a_second_media_type_for_the_same_model(
    path: str, method: str, operation: Any
) -> None:
    content = operation.get("requestBody", {}).get("content", {})
    models = [
        described["schema"]["$ref"]
        for described in content.values()
        if "$ref" in described["schema"]
    ]
    assert len(models) == len(set(models)), (path, method)


def test_u1_bodies_of_the_messenger_are_json_and_the_document_describes_forms() -> None:
    (text,) = (tag["description"] for tag in DOCUMENT["tags"] if tag["name"] == TAG)
    assert "application/x-www-form-urlencoded" in text
    bodies = [
        each["requestBody"]["content"].keys() for _, method, each in CODED if method == "post"
    ]
    assert len(bodies) == 8
    assert all(body == {"application/json"} for body in bodies)


def test_finding_d7_no_field_has_a_default_that_generated_clients_cannot_handle() -> None:
    assert '"default"' not in json.dumps(DOCUMENT["components"])


def test_a_property_may_be_named_default() -> None:
    class Choice(BaseModel):
        default: str = "first"

    route = next(route for route in all_routes(URL) if route.operation_id == "create_callback")
    schemas = document([replace(route, body=Body(Choice))], about("X-Service-Ticket"))[
        "components"
    ]["schemas"]
    assert schemas["Choice"]["properties"]["default"]["description"] == 'Default: `"first"`.'
    stop = DOCUMENT["components"]["schemas"]["RetryParams"]["properties"]["stop_after_delay"]
    assert stop["description"].endswith("Default: `432000.0`.")
    items = DOCUMENT["components"]["schemas"]["BatchResult"]["properties"]["items"]["items"]
    assert items == {"$ref": "#/components/schemas/BatchItem"}


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_finding_d12_parameters_and_operations_are_described(
    path: str, method: str, operation: Any
) -> None:
    assert operation["description"], (path, method)
    for parameter in operation["parameters"]:
        schema = parameter["schema"]
        assert parameter["description"]
        assert schema.keys() != {"type"}, (path, parameter["name"])
        if schema["type"] == "string" and not schema.keys() & {"enum", "format"}:
            assert schema["pattern"]
            assert schema.get("minLength", 1) == 1


def every_example() -> Iterator[Any]:
    """Yield every example with its schema."""
    for path, method, operation in OPERATIONS:
        contents = {"request": operation.get("requestBody", {}).get("content", {})}
        contents |= {s: r.get("content", {}) for s, r in operation["responses"].items()}
        for place, content in contents.items():
            described = content.get("application/json", {})
            for name, example in described.get("examples", {}).items():
                label = f"{method} {path} {place} {name}"
                yield pytest.param(described["schema"], example["value"], id=label)


@pytest.mark.parametrize(("schema", "example"), list(every_example()))
def test_every_example_matches_its_schema(schema: Any, example: Any) -> None:
    complete = schema | {"components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(complete).validate(example)


def request_examples(path: str) -> list[Any]:
    body = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return [example["value"] for example in body["examples"].values()]


@pytest.mark.parametrize("example", request_examples("/v1/callbacks"))
def test_the_callback_examples_are_valid_and_call_the_configured_url(example: Any) -> None:
    assert ScheduleCallback.model_validate_json(json.dumps(example)).url == URL


@pytest.mark.parametrize("example", request_examples("/v1/callbacks/retry"))
def test_the_retry_examples_are_valid(example: Any) -> None:
    assert RetryCallbacks.model_validate(example).group_key == "user-7"


@pytest.mark.parametrize("example", request_examples("/v1/events"))
def test_e1_the_event_examples_are_valid(example: Any) -> None:
    Event.model_validate_json(json.dumps(example))


@pytest.mark.parametrize("example", request_examples("/v1/postings"))
def test_e5_the_posting_examples_are_valid(example: Any) -> None:
    Posting.model_validate_json(json.dumps(example))


@pytest.mark.parametrize("example", request_examples("/v1/clients"))
def test_m1_the_client_examples_are_valid(example: Any) -> None:
    NewClient.model_validate_json(json.dumps(example))


@pytest.mark.parametrize("example", request_examples("/v1/mailings"))
def test_m2_the_mailing_examples_are_valid(example: Any) -> None:
    NewMailing.model_validate_json(json.dumps(example))


def test_the_sandbox_has_the_entries_that_the_examples_name() -> None:
    directory = Directory(count=100)
    number = directory.number_of(UUID(examples.USER))
    assert number is not None
    user = directory.user(number)
    assert user["email"] == examples.USER_NAME
    assert user["phone"]
    assert user["is_active"]
    assert user["email_notifications"]
    assert user["sms_notifications"]
    assert user["notifications"]["new_movies"]
    assert Catalogue("").movie(UUID(examples.MOVIE))
    assert Catalogue("").one_series(UUID(examples.SERIES))


def test_no_response_has_a_secret_field() -> None:
    for name in ("CallbackStatus", "CallbackCreated", "CallbackPage"):
        assert (
            not {"hmac_secret", "secret_ref"}
            & DOCUMENT["components"]["schemas"][name]["properties"].keys()
        )
