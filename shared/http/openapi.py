"""OpenAPI 3.1 documents from routes that are declared as data, with pydantic models."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

OPENAPI: Final = "3.1.1"
JSON: Final = "application/json"
REFERENCE: Final = "#/components/schemas/{model}"

# The schema of each model, or a reference to it.
Schemas = Mapping[type[Any], Any]
H = TypeVar("H")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter outside the body; `schema` is JSON Schema.

    Parameters in the path are required, all others are optional.
    """

    name: str
    where: Literal["path", "query", "header"]
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    example: Any = None


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request or a response; `examples` by their summary.

    required: whether a request must have one.
    """

    model: type[BaseModel]
    examples: Mapping[str, Any] = field(default_factory=dict)
    media_types: Sequence[str] = (JSON,)
    required: bool = True


@dataclass(frozen=True, slots=True)
class TextBody:
    """A body as text of any length; `examples` by media type."""

    examples: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Response:
    """The response with one status; `headers` are descriptions by header name.

    `links` name operations that may follow, with their parameters.
    """

    description: str
    body: Body | TextBody | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Route(Generic[H]):
    """One method on one path, its handler and its documentation.

    `operation_id` names the operation in generated clients. Responses are by status.
    `schemes` name alternative ways to authenticate; None: the usual ones.
    `head`: whether a route with GET supports HEAD, which runs the same handler.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    operation_id: str
    handler: H
    tag: str
    summary: str
    responses: Mapping[int, Response]
    description: str = ""
    parameters: Sequence[Parameter] = ()
    body: Body | TextBody | None = None
    schemes: Sequence[str] | None = None
    head: bool = True


@dataclass(frozen=True, slots=True)
class Description:
    """The general part of a document.

    `license` is an SPDX identifier.
    `tags` are descriptions by tag. `schemes` are ways to authenticate, of which `usual_schemes` are
    the alternatives of most routes.
    """

    title: str
    version: str
    text: str
    license: str
    tags: Mapping[str, str]
    schemes: Mapping[str, Mapping[str, Any]]
    usual_schemes: Sequence[str]


def document(routes: Iterable[Route[Any]], about: Description) -> dict[str, Any]:
    """Return the OpenAPI document of these routes."""
    routes = tuple(routes)
    incoming = {route.body.model for route in routes if isinstance(route.body, Body)}
    outgoing = {
        response.body.model
        for route in routes
        for response in route.responses.values()
        if isinstance(response.body, Body)
    }
    # A model of both requests and responses gets its request schema: there, defaults are optional.
    modes: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
        *((model, "validation") for model in sorted(incoming, key=_name)),
        *((model, "serialization") for model in sorted(outgoing - incoming, key=_name)),
    ]
    references, definitions = models_json_schema(modes, ref_template=REFERENCE)
    schemas: Schemas = {model: reference for (model, _), reference in references.items()}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operations = paths.setdefault(route.path, {})
        operations[route.method.lower()] = _operation(route, schemas, about)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": about.title,
            "version": about.version,
            "description": about.text,
            "license": {"name": about.license, "identifier": about.license},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in about.tags.items()],
        "paths": paths,
        "components": {
            "schemas": {
                name: _without_defaults(schema)
                for name, schema in definitions.get("$defs", {}).items()
            },
            "securitySchemes": {name: dict(scheme) for name, scheme in about.schemes.items()},
        },
    }


def _without_defaults(schema: Any) -> Any:
    """Return a schema whose descriptions state the defaults.

    Generated clients cannot handle the keyword `default`: openapi-python-client drops a route whose
    body has an object as a default, and openapi-typescript makes fields with a default mandatory.
    """
    if isinstance(schema, list):
        return [_without_defaults(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {
        name: (_of_properties if name == "properties" else _without_defaults)(part)
        for name, part in schema.items()
        if name != "default"
    }
    default = schema.get("default")
    if isinstance(default, str | int | float):
        stated = f"Default: `{json.dumps(default)}`."
        changed["description"] = f"{schema.get('description', '')} {stated}".strip()
    return changed


def _of_properties(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return schemas by property without defaults; a property may have a keyword's name."""
    return {name: _without_defaults(schema) for name, schema in properties.items()}


def _name(model: type[BaseModel]) -> str:
    return model.__name__


def _operation(route: Route[Any], schemas: Schemas, about: Description) -> dict[str, Any]:
    schemes = about.usual_schemes if route.schemes is None else route.schemes
    operation: dict[str, Any] = {
        "operationId": route.operation_id,
        "tags": [route.tag],
        "summary": route.summary,
        "parameters": [_parameter(parameter) for parameter in route.parameters],
        "responses": {
            str(status): _response(response, schemas)
            for status, response in route.responses.items()
        },
        # Any of the schemes, or none: a caller without a ticket is the anonymous client.
        "security": [{}, *({name: []} for name in schemes)],
    }
    if route.description:
        operation["description"] = route.description
    if route.body is not None:
        required = isinstance(route.body, TextBody) or route.body.required
        operation["requestBody"] = {"required": required, "content": _content(route.body, schemas)}
    return operation


def _parameter(parameter: Parameter) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.description,
        "required": parameter.where == "path",
        "schema": dict(parameter.schema),
    }
    if parameter.example is not None:
        described["example"] = parameter.example
    return described


def link(operation_id: str, description: str, **parameters: str) -> Mapping[str, Any]:
    """Return a link to an operation; the parameters are runtime expressions."""
    return {"operationId": operation_id, "description": description, "parameters": parameters}


def _response(response: Response, schemas: Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {"description": response.description}
    if response.headers:
        described["headers"] = {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in response.headers.items()
        }
    if response.body is not None:
        described["content"] = _content(response.body, schemas)
    if response.links:
        described["links"] = {name: dict(link) for name, link in response.links.items()}
    return described


def _content(body: Body | TextBody, schemas: Schemas) -> dict[str, Any]:
    if isinstance(body, TextBody):
        return {
            media_type: {"schema": {"type": "string"}, "example": text}
            for media_type, text in body.examples.items()
        }
    content: dict[str, Any] = {"schema": schemas[body.model]}
    if body.examples:
        content["examples"] = {
            summary.lower().replace(" ", "-"): {"summary": summary, "value": value}
            for summary, value in body.examples.items()
        }
    return dict.fromkeys(body.media_types, content)
